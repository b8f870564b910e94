"""Gradients of a loss on a few rows at a time, for the importances that ask what the loss would say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.randomness import repeatable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.numerics.pruning.groups import Group

CHUNK = 8
"""Rows per gradient: fewer make the estimate less noisy, since gradients of many rows cancel out."""

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""Loss of a module on one batch (inputs and targets), a scalar."""


@dataclass(frozen=True)
class Evidence:
    """What the importances that ask the loss need: batches of tensors, and the loss whose change is judged."""

    batches: Iterable[Mapping[str, Tensor]]
    loss: Loss


def each(module: nn.Module, evidence: Evidence, look: Callable[[], None]) -> int:
    """Look after every backward pass, while the module's gradients are those of one chunk of rows.

    Args:
        module: In evaluation mode, on the batches' device; its gradients are gone afterwards.
        evidence: Rows and loss.
        look: Called after each pass.

    Returns:
        The number of passes.

    Raises:
        StageError: When there are no rows, a loss is not finite, or the model cannot be differentiated.
    """
    rows = passes = 0
    for batch in evidence.batches:
        size = max(len(value) for value in batch.values())
        for start in range(0, size, CHUNK):
            chunk = {name: value[start : start + CHUNK] for name, value in batch.items()}
            with _gradients(module):
                _backward(module, evidence.loss, chunk, rows + start)
                look()
            passes += 1
        rows += size
    if not passes:
        raise StageError("the data for importance hold no rows", then="name data that have rows")
    return passes


def _backward(module: nn.Module, loss: Loss, chunk: Mapping[str, Tensor], first: int) -> None:
    with models.blamed("its gradients cannot be computed"):
        value = loss(module, chunk)
        torch.autograd.backward(value)
    if not torch.isfinite(value):
        last = first + max(len(item) for item in chunk.values())
        raise StageError(
            f"the loss that importance is judged by is {float(value.detach())} on the rows {first + 1} to {last}",
            then="look for values in these rows that are no numbers, or for a model that gives none",
        )


def finite(values: Tensor, group: Group) -> list[float]:
    """Give importances as numbers.

    Raises:
        StageError: When one is not finite, because a gradient was not.
    """
    if not torch.isfinite(values).all():
        raise StageError(
            f"the gradients at '{group.name}' are not finite, though the loss is",
            then="look in forward() for a function without a slope somewhere, such as sqrt or norm at 0, or use "
            "importance: l2",
        )
    return [float(value) for value in values.tolist()]


@contextlib.contextmanager
def _gradients(module: nn.Module) -> Iterator[None]:
    """Give every weight a gradient, those too that the model's author froze: without one it would count as useless."""
    frozen = [item for item in module.parameters() if item.is_floating_point() and not item.requires_grad]
    # cuDNN's recurrent layers have gradients in training mode only.
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    native = torch.backends.cudnn.enabled and not recurrent
    module.zero_grad(set_to_none=True)
    try:
        with torch.enable_grad(), repeatable(next(module.parameters()).device, cudnn=native):
            for item in frozen:
                item.requires_grad_()
            yield
    finally:
        module.zero_grad(set_to_none=True)
        for item in frozen:
            item.requires_grad = False
