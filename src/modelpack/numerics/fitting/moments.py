"""Second moments of what layers read, summed over any number of rows: no activation is kept."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import masks, models
from modelpack.numerics.calling import call
from modelpack.numerics.fitting.layers import Layer, inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed

BUDGET = 512 * 2**20
"""Bytes of moments that one pass over the rows gathers."""

_PIECE = 2**28
"""Bytes of a convolution's inputs that are unfolded at once: large images have millions of positions."""


@dataclass(frozen=True)
class Reading:
    """Rows that show what layers read.

    Attributes:
        read: Gives them, from the start.
        mask: The model's input that tells padded positions, which do not count; None for none.
        device: Where the model runs.
    """

    read: Callable[[], Iterable[Feed]]
    mask: str | None
    device: str | torch.device

    def real(self, feed: Feed) -> NDArray[np.bool_] | None:
        """Give which positions are real, in the mask's shape; None where all are."""
        return masks.real(self.mask, feed) if self.mask is not None else None


def gather(
    module: nn.Module, layers: Sequence[Layer], reading: Reading, *, whole: bool, parts: int = 1
) -> dict[str, Tensor]:
    """Sum ``x xᵀ`` over all that a layer is applied to; padded positions do not count, but for convolutions.

    Args:
        module: In evaluation mode, on the device of the reading.
        layers: Whose inputs are looked at.
        reading: The rows.
        whole: Whether moments are matrices, or only their diagonals.
        parts: How many sums there are; rows are dealt out to them in turn.

    Returns:
        Name of a layer → moments, ``(parts, groups, inputs, inputs)`` or ``(parts, groups, inputs)``, float64; layers
        that the model never calls are absent.

    Raises:
        StageError: When an input holds NaN or infinity.
    """
    sums: dict[str, Tensor] = {}
    real: NDArray[np.bool_] | None = None
    before = 0  # rows of earlier feeds

    def add(layer: Layer, user: nn.Module, values: Tensor) -> None:
        for part in range(parts):
            mine = slice((part - before) % parts, None, parts)
            if mine.start >= len(values):
                continue
            mask = real[mine] if real is not None else None
            for piece in _pieces(user, _real(user, values[mine], mask)):
                rows = inputs(user, piece).float()
                found = (rows.mT @ rows if whole else rows.square().sum(1)).double()
                if not bool(found.isfinite().all()):
                    raise StageError(
                        "what this layer reads is not finite on the rows",
                        where=layer.name.removesuffix(".weight"),
                        then="leave it out by `exclude` or `keep`, or mend the model or the data",
                    )
                if layer.name not in sums:
                    sums[layer.name] = found.new_zeros((parts, *found.shape))
                sums[layer.name][part] += found

    with torch.no_grad(), _watched(layers, add):
        for feed in reading.read():
            real = reading.real(feed)
            with models.blamed("the model fails on the rows"):
                call(module, models.tensors(feed, reading.device))
            before += len(next(iter(feed.values())))
    return sums


def size(layer: Layer) -> int:
    """Give the bytes of a layer's moment, of one part."""
    return 8 * layer.groups * layer.weight[0].numel() ** 2


def shares(layers: Sequence[Layer], budget: int = BUDGET) -> Iterator[list[Layer]]:
    """Share layers out so that the moments of a share take at most `budget` bytes, or are of one layer."""
    share: list[Layer] = []
    room = budget
    for layer in layers:
        needed = size(layer)
        if share and needed > room:
            yield share
            share, room = [], budget
        share.append(layer)
        room -= needed
    if share:
        yield share


@contextlib.contextmanager
def _watched(layers: Sequence[Layer], add: Callable[[Layer, nn.Module, Tensor], None]) -> Iterator[None]:
    def hook(layer: Layer) -> Callable[..., None]:
        def look(user: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            add(layer, user, given[0] if given else named["input"])

        return look

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            for user in layer.users:
                hooks.callback(user.register_forward_pre_hook(hook(layer), with_kwargs=True).remove)
        yield


def _pieces(user: nn.Module, values: Tensor) -> Sequence[Tensor]:
    """Cut a convolution's input along the batch, so that a piece can be unfolded."""
    if isinstance(user, nn.Linear) or not len(values):
        return [values]
    unfolded = values[0].numel() * user.get_parameter("weight")[0, 0].numel() * values.element_size()
    return torch.split(values, max(1, _PIECE // unfolded))


def _real(user: nn.Module, values: Tensor, real: NDArray[np.bool_] | None) -> Tensor:
    """Give the positions that count, where the leading axes of a tensor are those of the mask.

    Those of a convolution are rows and channels, even where there are as many of these as positions.
    """
    if real is None or not isinstance(user, nn.Linear):
        return values
    if values.ndim != real.ndim + 1 or values.shape[: real.ndim] != real.shape:
        return values
    return values[torch.from_numpy(real).to(values.device)]
