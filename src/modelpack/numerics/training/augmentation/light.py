"""Images lit otherwise: brightness and contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.training.augmentation.draws import Draws
    from modelpack.numerics.training.augmentation.wanted import Wanted


def lit(images: Tensor, draws: Draws, wanted: Wanted) -> Tensor:
    """Change every image's brightness and contrast, within the range of values that each of its channels has.

    Args:
        images: ``[rows, channels, height, width]``.
        draws: The rows' numbers.
        wanted: By how much, at most: brightness in parts of a channel's range, contrast in parts of itself.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    mean = images.mean((2, 3), keepdim=True)

    def drawn(what: str, most: float) -> Tensor:
        return torch.from_numpy(draws.uniform(what, -most, most)[:, :, None, None]).to(images.dtype)

    changed = mean + (images - mean) * (1 + drawn("contrast", wanted.contrast))
    return (changed + drawn("brightness", wanted.brightness) * (high - low)).clamp(low, high)
