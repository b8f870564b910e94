"""Statistics of batch norms, measured anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpack.numerics import models
from modelpack.numerics.calling import call
from modelpack.numerics.training.batches import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from modelpack.numerics.training.batches import Rows
    from modelpack.numerics.training.lesson import Watch


def reestimate(module: nn.Module, data: Rows, device: torch.device, watch: Watch) -> int:
    """Measure the statistics of a module's batch norms anew on its inputs' rows; gives how many there are."""
    picked = watch(data.picked(), 0, "batch norms")
    return reestimate_all(module, (split(batch, device)[0] for batch in picked))


@torch.no_grad()
def reestimate_all(module: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Measure the statistics of all batch norms anew, as plain averages over the batches, in place.

    Returns:
        How many batch norms there were; 0 leaves the module as it was.

    Raises:
        StageError: When the module cannot run on a batch.
    """
    norms = _norms(module)
    if not norms:
        return 0
    before = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative average
        layer.train()
    for batch in _without_lone_row(batches):
        with models.blamed("the statistics of batch norms cannot be measured"):
            call(module, batch)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    module.eval()
    return len(norms)


def own(module: nn.Module) -> None:
    """Give the batch norms of a module whose tensors are shared statistics of their own, in place."""
    for layer in _norms(module):
        for name, value in layer.named_buffers(recurse=False):
            setattr(layer, name, value.clone())


def _norms(module: nn.Module) -> list[Any]:
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats  # noqa: SLF001
    ]


def _without_lone_row(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    """Leave out a last batch of a single row, whose values do not vary; not where all batches are like that."""
    largest = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        largest = max(largest, size)
        if size > 1 or largest == 1:
            yield batch
