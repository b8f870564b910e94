"""Networks in plain torch that only speed is measured on: their weights are random."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


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
