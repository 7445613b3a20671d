"""PSA's AffinityNet: features whose distance gives the affinity of two pixels (Ahn & Kwak, CVPR 2018)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .labels import pair_terms, pair_views, shrink_labels
from .random_walk import pair_offsets, pair_slices

MULTIPLE = 8  # images are padded to whole cells


class AffinityNet(nn.Module):
    """Features [B, 448, h, w] of the last three stages of a backbone, at the resolution of the first of them.

    The paper's ResNet-38 has 512, 1024 and 4096 channels there, a ResNet-50 512, 1024 and 2048. Heads have
    the released names; the stem, the first stage and all batch norm stay as they are, as in the release (the
    backbone is built with `frozen_bn`).
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        for module in (backbone.conv1, backbone.layer1, *backbone.batch_norms()):
            module.requires_grad_(False)
        for name, width, out in zip(("f8_3", "f8_4", "f8_5"), backbone.channels[2:], (64, 128, 256)):
            self.add_module(name, nn.Conv2d(width, out, 1, bias=False))
            nn.init.kaiming_normal_(self.get_submodule(name).weight)
        self.f9 = nn.Conv2d(448, 448, 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> features [B, 448, h, w]."""
        levels = self.backbone.stages(images)[2:]
        levels = [F.interpolate(level, levels[0].shape[-2:], mode="bilinear", align_corners=False)
                  for level in levels]
        mixed = [F.elu(head(level)) for head, level in zip((self.f8_3, self.f8_4, self.f8_5), levels)]
        return F.elu(self.f9(torch.cat(mixed, 1)))

    def parameter_groups(self, lr: float) -> list[dict]:
        """The backbone at `lr`, the new layers at 10 times it (the release's train_aff)."""
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        heads = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": body, "lr": lr}, {"params": heads, "lr": 10 * lr}]

    @torch.inference_mode()
    def affinities(self, image: Tensor, radius: int = 5) -> Tensor:
        """Affinities [n, h, w] of an image [3, H, W] in [0, 1] for `random_walk.propagate_affinity`.

        Padded with the mean colour to whole cells of 8 pixels. Every pair inside counts, as in the paper; the
        release leaves out those that start in the last rows or outer columns.
        """
        height, width = image.shape[-2:]
        mean = self.backbone.mean
        padded = F.pad(image[None] - mean, (0, -width % MULTIPLE, 0, -height % MULTIPLE)) + mean
        features = self(padded)[0].float()
        affinities = features.new_zeros(len(pair_offsets(radius)), *features.shape[1:])
        for index, offset in enumerate(pair_offsets(radius)):
            first, second = pair_slices(features.shape[1:], *offset)
            affinities[index, *first] = pair_affinity(features[:, *first], features[:, *second], 0)
        return affinities

    def loss_terms(self, images: Tensor, labels: Tensor, radius: int = 5) -> dict[str, Tensor]:
        """The release's loss of images [B, 3, H, W] with confident labels [B, H, W] (255 unsure).

        Cross entropy of pair affinities over background, foreground and unlike pairs (1/4, 1/4, 1/2). Labels
        are those at the cells' centres; the release averages the CRF's scores over each cell.
        """
        features = self(images)
        first, others = pair_views(features.float(), radius)
        affinity = torch.stack([pair_affinity(first, second, 1) for second in others], 1)
        return pair_terms(affinity, shrink_labels(labels, features.shape[-2:]), radius)


def pair_affinity(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """exp(-mean over `dim` of |first - second|), in (0, 1] (paper, equation 3; the mean is the release's)."""
    return torch.exp(-(first - second).abs().mean(dim))
