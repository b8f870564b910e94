"""How much a channel matters.

* ``l2``: the norm of every weight that makes or reads the channel, over all coupled layers (group norm as in
  Fang et al., DepGraph, CVPR 2023), relative to the group's mean.
* ``bn_scale``: the size of its batch-norm scales (Liu et al., Network Slimming, ICCV 2017).
* ``taylor``: the squared first-order change of the loss if every reader ignored it (Molchanov et al., CVPR 2019),
  averaged over small batches, per multiply-accumulate that its removal saves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics.pruning.surgery import MATRICES, Member, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.numerics.pruning.groups import Group

_CHUNK = 8
"""Rows per gradient: fewer make the estimate less noisy, since gradients of many rows cancel out."""

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""Loss of a module on one batch (inputs and targets), a scalar."""


def l2(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the norm of their weights; 1 is the group's mean."""
    scores: list[list[float]] = []
    for group in groups:
        total = torch.zeros(len(group.members[0].places), dtype=torch.float64)
        for member in group.members:
            if member.side in ("out", "in"):
                total += _by_root(member, _per_index(module, member, torch.square))
        blocks = [math.sqrt(sum(float(total[root]) for root in block)) for block in group.blocks]
        mean = sum(blocks) / len(blocks) or 1.0
        scores.append([value / mean for value in blocks])
    return scores


def bn_scale(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the absolute scales of the batch norms they pass; infinite where they pass none.

    Raises:
        StageError: When no group passes a batch norm.
    """
    modules = dict(module.named_modules())
    scores: list[list[float]] = []
    for group in groups:
        scales = [
            _by_root(member, modules[member.path].get_parameter("weight").detach().abs().double().cpu())
            for member in group.members
            if isinstance(modules.get(member.path), nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  the common class
            and modules[member.path].weight is not None
        ]
        width = len(group.members[0].places)
        total = torch.stack(scales).mean(0) if scales else torch.full((width,), math.inf)
        scores.append([float(total[list(block)].sum()) for block in group.blocks])
    if all(math.isinf(value) for group_scores in scores for value in group_scores):
        raise StageError(
            "importance bn_scale needs channels that pass a batch norm, and the model has none",
            then="use importance: l2 or taylor",
        )
    return scores


def taylor(
    module: nn.Module,
    groups: Iterable[Group],
    batches: Iterable[Mapping[str, Tensor]],
    loss: Loss,
    costs: Iterable[float],
) -> list[list[float]]:
    """Score blocks by what ignoring them would do to the loss, per multiply-accumulate saved.

    Args:
        module: In evaluation mode, on the batches' device.
        groups: What may be removed.
        batches: Inputs and targets as tensors.
        loss: A scalar per batch.
        costs: By group: the multiply-accumulates that one block takes.
    """
    groups = list(groups)
    totals = [torch.zeros(len(group.blocks), dtype=torch.float64) for group in groups]
    count = 0
    for batch in batches:
        rows = max(len(value) for value in batch.values())
        for start in range(0, rows, _CHUNK):
            chunk = {name: value[start : start + _CHUNK] for name, value in batch.items()}
            with _gradients(module):
                torch.autograd.backward(loss(module, chunk))
                for total, group in zip(totals, groups, strict=True):
                    total.add_(_gates(module, group).square())
            count += 1
    if count == 0:
        raise StageError("the data for importance hold no rows")
    return [(total / count / max(cost, 1.0)).tolist() for total, cost in zip(totals, costs, strict=True)]


@contextlib.contextmanager
def _gradients(module: nn.Module) -> Iterator[None]:
    """Give every weight a gradient, those too that the model's author froze: without one it would count as useless."""
    frozen = [item for item in module.parameters() if item.is_floating_point() and not item.requires_grad]
    # cuDNN's recurrent layers have gradients in training mode only.
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    native = torch.backends.cudnn.enabled and not recurrent
    module.zero_grad(set_to_none=True)
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=native, deterministic=True):
            for item in frozen:
                item.requires_grad_()
            yield
    finally:
        module.zero_grad(set_to_none=True)
        for item in frozen:
            item.requires_grad = False


def _gates(module: nn.Module, group: Group) -> Tensor:
    """Sum weight times gradient over all that reads a block: the loss's slope along its contribution."""
    total = torch.zeros(len(group.members[0].places), dtype=torch.float64)
    for member in group.members:
        if member.side == "in":
            total += _by_root(member, _per_index(module, member, None))
    return torch.stack([total[list(block)].sum() for block in group.blocks])


def _per_index(module: nn.Module, member: Member, measure: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Sum a measure of a layer's weights (weight times gradient when None) by channel of the member's side."""
    layer = module.get_submodule(member.path)
    assert isinstance(layer, MATRICES)
    weight = layer.weight.detach()
    if measure is not None:
        values = measure(weight.double())
    else:
        values = (weight * layer.weight.grad).double() if layer.weight.grad is not None else weight.double() * 0
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    if (member.side == "in") == transposed:
        return values.flatten(1).sum(1).cpu()
    # Dimension 1 counts within one part of a grouped convolution.
    groups = parts_of(layer)
    parts = values.flatten(2) if values.ndim > 2 else values[..., None]
    return parts.view(groups, -1, *parts.shape[1:]).sum((1, 3)).flatten().cpu()


def _by_root(member: Member, values: Tensor) -> Tensor:
    indices = [(root, index) for root, places in enumerate(member.places) for index in places]
    total = torch.zeros(len(member.places), dtype=torch.float64)
    roots = torch.tensor([root for root, _ in indices], dtype=torch.long)
    return total.index_add_(0, roots, values[[index for _, index in indices]].double())
