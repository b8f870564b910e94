"""Second moments of what layers read, summed over any number of rows: no activation is kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.calling import call
from modelpack.numerics.quantization.calibration import masks
from modelpack.numerics.sparsity.layers import Layer, inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed

BUDGET = 512 * 2**20
"""Bytes of moments that one pass over the rows gathers."""


def gather(
    module: nn.Module,
    layers: Sequence[Layer],
    read: Callable[[], Iterable[Feed]],
    *,
    mask: str | None,
    whole: bool,
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Sum ``x xᵀ`` over all that a layer is applied to; padded positions do not count.

    Args:
        module: In evaluation mode, on the device.
        layers: Whose inputs are looked at.
        read: Gives the rows, from the start.
        mask: The model's input that tells padded positions.
        whole: Whether moments are matrices, or only their diagonals.
        device: Where the model runs.

    Returns:
        Name of a layer → moment, ``(groups, inputs, inputs)`` or ``(groups, inputs)``, float64; layers that
        the model never calls are absent.

    Raises:
        StageError: When an input holds NaN or infinity.
    """
    sums: dict[str, Tensor] = {}
    real: list[NDArray[np.bool_] | None] = [None]

    def add(layer: Layer, user: nn.Module, values: Tensor) -> None:
        rows = inputs(user, _real(values, real[0])).float()
        part = (rows.mT @ rows if whole else rows.square().sum(1)).double()
        if not bool(part.isfinite().all()):
            raise StageError(
                "what this layer reads is not finite on the rows",
                where=layer.name.removesuffix(".weight"),
                then="exclude it, or mend the model or the data",
            )
        sums[layer.name] = sums[layer.name] + part if layer.name in sums else part

    with torch.inference_mode(), _watched(layers, add):
        for feed in read():
            real[0] = masks.real(mask, feed) if mask is not None else None
            with models.blamed("the model fails on the rows"):
                call(module, models.tensors(feed, device))
    return sums


def shares(layers: Sequence[Layer], budget: int = BUDGET) -> Iterator[list[Layer]]:
    """Share layers out so that the moments of a share take at most `budget` bytes, or are of one layer."""
    share: list[Layer] = []
    room = budget
    for layer in layers:
        width = layer.weight[0].numel()
        size = 8 * layer.groups * width**2
        if share and size > room:
            yield share
            share, room = [], budget
        share.append(layer)
        room -= size
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


def _real(values: Tensor, real: NDArray[np.bool_] | None) -> Tensor:
    """Give the positions that count, where the leading axes of a tensor are those of the mask."""
    if real is None or values.ndim != real.ndim + 1 or values.shape[: real.ndim] != real.shape:
        return values
    return values[torch.from_numpy(real).to(values.device)]
