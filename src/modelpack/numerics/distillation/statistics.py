"""Statistics of batch norms, measured anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from modelpack.numerics import models
from modelpack.numerics.calling import call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor


@torch.no_grad()
def reestimate_all(module: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Measure the statistics of all batch norms anew, as plain averages over the batches, in place.

    Returns:
        How many batch norms there were; 0 leaves the module as it was.
    """
    norms = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats  # noqa: SLF001
    ]
    if not norms:
        return 0
    before = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative average
        layer.train()
    for batch in batches:
        with models.blamed("the statistics of batch norms cannot be measured"):
            call(module, batch)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    module.eval()
    return len(norms)
