"""The class activation map generator: a backbone and a bias-free 1x1 classifier."""
import torch
from torch import nn


class Generator(nn.Module):
    """Maps images [B,3,H,W] in [0,1] to raw class maps W^T Z [B,K,h,w] (POLE sec. 3.1).

    Their mean over positions is the classifier's logit (global average pooling commutes with the 1x1 convolution).
    `backbone` maps images to features [B,C,h,w] and has `channels`; `frozen` are those of its modules that are not
    trained and whose batch norm stays as it is.
    """

    def __init__(self, backbone: nn.Module, n_classes: int, frozen: tuple[nn.Module, ...] = ()):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], n_classes, 1, bias=False)
        self.frozen = [module.requires_grad_(False) for module in frozen]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raw maps [B,K,h,w]."""
        return self.classifier(self.backbone(images))

    def train(self, mode: bool = True) -> "Generator":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def parameter_groups(self, lr: float, head_ratio: float = 10.0) -> list[dict]:
        """The backbone at `lr`, the new classifier at `head_ratio` times it (IRN, CLIMS)."""
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        return [{"params": body, "lr": lr}, {"params": list(self.classifier.parameters()), "lr": lr * head_ratio}]
