"""The gradient of CLIP's class scores at a ViT's last block, in closed form, for all tags of an image."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.towers import ResidualBlock


def standardise(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x [L,W] as a layer norm standardises it before its weight and bias, and the deviations [L,1]."""
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    deviation = (variance + norm.eps).sqrt()
    return (x - mean) / deviation, deviation


def before_standardising(gradient: Tensor, standard: Tensor, deviation: Tensor) -> Tensor:
    """The gradient [L,W] at the input of `standardise`, from that at its output `standard`."""
    mean = gradient.mean(dim=-1, keepdim=True)
    share = (gradient * standard).mean(dim=-1, keepdim=True)
    return (gradient - mean - standard * share) / deviation


class LastBlock:
    """A ViT's last block run on one image's tokens x [L,W], the class token first; all in float32.

    tokens [L,W]: the output of the block's first norm. attention [L,L]: mean over the heads. mean [W]: the
    patches' mean after the tower's final norm. `channel_weights` follows a gradient at `mean` back to
    `tokens`, and takes its mean over the patches. As only that mean is wanted, the products that give the
    gradient at every token's query, key and value are left out.
    """

    def __init__(self, block: ResidualBlock, final_norm: nn.LayerNorm, x: Tensor):
        self.block = block
        self.final_norm = final_norm
        self.tokens = block.ln_1(x)
        projected = F.linear(self.tokens, block.attn.in_proj_weight, block.attn.in_proj_bias)
        self.query, self.key, self.value = (block.attn.split(part) for part in projected.chunk(3, dim=-1))
        self.scale = self.query.shape[-1] ** -0.5
        self.weights = (self.scale * self.query @ self.key.transpose(-1, -2)).softmax(dim=-1)
        self.attention = self.weights.mean(dim=0)
        self.mixed = self.weights @ self.value  # [heads,L,W/heads]
        attended = x + block.attn.out_proj(self.mixed.transpose(0, 1).flatten(1))
        patches = attended[1:]
        self.inner, self.inner_deviation = standardise(patches, block.ln_2)
        hidden = block.mlp.c_fc(self.inner * block.ln_2.weight + block.ln_2.bias)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_(True)
            active = block.activate(hidden)
            self.slope, = torch.autograd.grad(active.sum(), hidden)
        patches = patches + block.mlp.c_proj(active.detach())
        self.outer, self.outer_deviation = standardise(patches, final_norm)
        self.mean = (self.outer * final_norm.weight + final_norm.bias).mean(dim=0)
        # What all gradients share of their way through the second linear layer.
        self.outer_hidden = self.outer @ block.mlp.c_proj.weight

    def channel_weights(self, gradients: Tensor) -> Tensor:
        """Gradients [k,W] at `mean` -> the means over the patches of the gradients at `tokens` [k,W]."""
        at_projected = torch.stack([self._at_projected(gradient) for gradient in gradients])
        return at_projected @ self.block.attn.in_proj_weight / len(self.outer)

    def _at_projected(self, gradient: Tensor) -> Tensor:
        """The gradient [3*W], summed over the patches, at queries, keys and values."""
        # The final norm and the second linear layer. The gradient at the former's output is the same for all
        # patches, so that one product of `outer` and the layer serves all tags.
        block = self.block
        gradient = gradient * self.final_norm.weight / len(self.outer)
        at_patches = before_standardising(gradient, self.outer, self.outer_deviation)
        share = (self.outer @ gradient)[:, None] / self.outer.shape[1]
        constant = (gradient - gradient.mean()) @ block.mlp.c_proj.weight
        at_hidden = (constant - share * self.outer_hidden) / self.outer_deviation * self.slope
        # The first linear layer, the second norm and the residual.
        at_inner = at_hidden @ block.mlp.c_fc.weight * block.ln_2.weight
        at_patches = at_patches + before_standardising(at_inner, self.inner, self.inner_deviation)
        # The attention. The class token's output does not count, so that its row has no gradient.
        at_mixed = block.attn.split(at_patches @ block.attn.out_proj.weight)
        weights = self.weights[:, 1:]
        row_share = (at_mixed * self.mixed[:, 1:]).sum(dim=-1, keepdim=True)
        at_values = ((1 - weights[..., :1]) * at_mixed).sum(dim=1)
        carried = weights.transpose(1, 2) @ torch.cat([at_mixed, row_share], dim=-1)
        columns = (self.value * carried[..., :-1]).sum(dim=-1, keepdim=True) - carried[..., -1:]
        at_queries = self.scale * (columns * self.key).sum(dim=1)
        # Each row of the gradient at the scores sums to 0: over the patches it is minus the class token's.
        first = weights[..., :1] * ((at_mixed * self.value[:, :1]).sum(dim=-1, keepdim=True) - row_share)
        at_keys = -self.scale * (first * self.query[:, 1:]).sum(dim=1)
        return torch.cat([at_queries.flatten(), at_keys.flatten(), at_values.flatten()])
