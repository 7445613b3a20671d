"""POLE's adapters of CLIP's two embeddings."""
import torch
import torch.nn.functional as F
from torch import nn


ADAPTERS = ("none", "fixed", "learnable")


class Adapter(nn.Module):
    """Residual bottleneck on features [N,D]: r * ReLU(x W1) W2 + (1 - r) * x (POLE eqs. 7-8, CLIP-Adapter).

    W1 has D/4 columns; r starts at 0.2. kind `fixed` keeps r that scalar, `learnable` learns one r per
    dimension (the vector of POLE sec. 3.4), `none` returns x.
    """

    def __init__(self, dim: int, kind: str):
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.down = nn.Linear(dim, dim // 4, bias=False)
            self.up = nn.Linear(dim // 4, dim, bias=False)
        self.ratio = nn.Parameter(torch.full((dim,), 0.2)) if kind == "learnable" else 0.2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Adapted features, not normalised."""
        if self.kind == "none":
            return features
        return self.ratio * self.up(F.relu(self.down(features))) + (1 - self.ratio) * features
