"""Networks in plain torch that only speed is measured on: their weights are random."""

from __future__ import annotations

from fashion.net import Block  # a link, so that the code travels with the recipe
from torch import Tensor, nn


class ResNet18(nn.Module):
    """Eighteen layers for images of 224x224 (arXiv 1512.03385, table 1)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        channels, blocks = 64, []
        for width in (64, 128, 256, 512):
            blocks += [Block(channels, width, 1 if width == 64 else 2), Block(width, width, 1)]
            channels = width
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (batch, 3, 224, 224) to one score per class (batch, classes)."""
        return self.head(self.body(self.stem(image)).mean((2, 3)))


def resnet18() -> nn.Module:
    """Make ResNet-18 with fresh weights."""
    return ResNet18()
