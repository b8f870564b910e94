"""Images with a hole: a square of each is replaced by its mean (DeVries and Taylor 2017, Cutout)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.training.augmentation.draws import Draws


def holed(images: Tensor, draws: Draws, side: float) -> Tensor:
    """Cut a rectangle out of every image; it may lie half outside.

    Args:
        images: ``[rows, channels, height, width]``.
        draws: The rows' numbers.
        side: Its sides, in parts of the image's.
    """
    height, width = images.shape[2:]
    centre = torch.from_numpy(draws.uniform("cutout", count=2))
    rows = (torch.arange(height) + 0.5)[None] / height - centre[:, :1]
    columns = (torch.arange(width) + 0.5)[None] / width - centre[:, 1:]
    inside = (rows.abs() <= side / 2)[:, None, :, None] & (columns.abs() <= side / 2)[:, None, None, :]
    return torch.where(inside, images.mean((2, 3), keepdim=True), images)
