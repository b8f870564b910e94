"""EfficientNet-Lite0 as its authors' PyTorch port builds it, installed and not copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efficientnet_lite_pytorch import EfficientNet

if TYPE_CHECKING:
    from torch import nn


def build() -> nn.Module:
    """Make the network: images (batch, 3, 224, 224) to the scores of the 1,000 ImageNet classes."""
    return EfficientNet.from_name("efficientnet-lite0")
