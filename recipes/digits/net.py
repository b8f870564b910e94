"""A small image classifier with what pruning finds hard: residual sums and depthwise convolutions."""

from __future__ import annotations

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return (x + self.second(self.first(x).relu())).relu()


class Separable(nn.Module):
    """A depthwise 3x3 convolution that halves the image, then a 1x1 convolution that widens it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = _convolution(inputs, inputs, stride=2, groups=inputs)
        self.pointwise = _convolution(inputs, outputs, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / 2, width / 2)."""
        return self.pointwise(self.depthwise(x).relu()).relu()


class DigitsNet(nn.Module):
    """Recognises a handwritten digit in a grey 8x8 image."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = _convolution(1, width)
        self.body = nn.Sequential(
            Residual(width),
            Separable(width, 2 * width),
            Residual(2 * width),
            Separable(2 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (batch, 1, 8, 8) with values from 0 to 1 to one score per class (batch, classes)."""
        return self.head(self.body(self.stem(image).relu()).mean((2, 3)))


def build(width: int = 32, classes: int = 10) -> nn.Module:
    """Make the network with fresh weights; `width` is the number of channels at full resolution."""
    return DigitsNet(width, classes)
