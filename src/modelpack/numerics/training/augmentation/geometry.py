"""Images moved: mirrored, shifted, turned, cropped and enlarged, in one resampling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.training.augmentation.draws import Draws
    from modelpack.numerics.training.augmentation.wanted import Wanted


def moved(images: Tensor, draws: Draws, wanted: Wanted) -> Tensor:
    """Move every image by numbers of its own; what lies outside is mirrored in.

    Args:
        images: ``[rows, channels, height, width]``.
        draws: The rows' numbers.
        wanted: Which moves, and how far.
    """
    if wanted.flip:
        mirrored = torch.from_numpy(draws.uniform("flip")[:, 0] < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if not (wanted.shift or wanted.scale or wanted.rotate):
        return images
    grid = functional.affine_grid(
        _matrices(draws, wanted, images.shape[2:]).to(images.dtype), list(images.shape), align_corners=False
    )
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    found = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return found.clamp(low, high)  # weights that do not quite add up to 1 may leave the range by a rounding


def _matrices(draws: Draws, wanted: Wanted, size: torch.Size) -> Tensor:
    """Give each row's map from places in the result to places in the image, both from -1 to 1.

    A crop keeps the image's proportions and lies inside it; a shift is by whole pixels, so that it blurs nothing.
    """
    height, width = size
    side = 1 - draws.uniform("scale", 0, wanted.scale)[:, 0]
    room = (1 - side)[:, None] * draws.uniform("crop", -1, 1, 2)
    angle = draws.uniform("rotate", -1, 1)[:, 0] * math.radians(wanted.rotate)
    step = draws.uniform("shift", -wanted.shift, wanted.shift, 2)
    rows = torch.empty(len(side), 2, 3, dtype=torch.float64)
    # A turn happens in pixels, so that an image that is no square is not sheared.
    for (row, column), values in {
        (0, 0): side * _cos(angle),
        (0, 1): -side * _sin(angle) * height / width,
        (0, 2): room[:, 0] + (step[:, 0] * width).round() * 2 / width,
        (1, 0): side * _sin(angle) * width / height,
        (1, 1): side * _cos(angle),
        (1, 2): room[:, 1] + (step[:, 1] * height).round() * 2 / height,
    }.items():
        rows[:, row, column] = torch.from_numpy(values)
    return rows


def _cos(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.from_numpy(angle).cos().numpy()


def _sin(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.from_numpy(angle).sin().numpy()
