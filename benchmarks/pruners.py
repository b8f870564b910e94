"""torch-pruning as its documentation says to call it, and plain fine-tuning: what pruning is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from modelpack.numerics import macs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Plain:
    """How long and how fast a model is fine-tuned.

    Attributes:
        epochs: Passes over the rows.
        rate: Highest learning rate.
        decay: Weight decay.
    """

    epochs: int
    rate: float
    decay: float


Batch = tuple[tuple[Tensor, ...], Tensor]
"""Inputs in the order of a call, and what the outputs should be."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and what they should be → a number."""

STEPS = 100
"""Small steps in which torch-pruning approaches a number of multiply-accumulates."""


def channels(
    net: nn.Module, example: Mapping[str, Tensor], head: nn.Module, keep: float, gradients: Iterable[Batch] = ()
) -> nn.Module:
    """Remove channels over all layers together, by the norm of their groups or, given rows, by Taylor.

    Args:
        net: The network; a copy is pruned.
        example: Inputs of one call, by name in the order of a call.
        head: The layer whose outputs stay.
        keep: Fraction of multiply-accumulates to keep.
        gradients: Batches for importance Taylor.
    """
    net, head = _twin(net, head)
    rows = list(gradients)
    kind = torch_pruning.importance.GroupTaylorImportance if rows else torch_pruning.importance.GroupMagnitudeImportance
    pruner = torch_pruning.pruner.BasePruner(
        net, tuple(example.values()), importance=kind(), global_pruning=True, pruning_ratio=1.0, max_pruning_ratio=0.95,
        iterative_steps=STEPS, ignored_layers=[head],
    )  # fmt: skip
    if rows:
        _accumulate(net, rows)
    # Its own count does not know layers that are subclasses of torch's.
    whole = macs.count(net, example)
    while macs.count(net, example) > keep * whole:
        before = [parameter.shape for parameter in net.parameters()]
        pruner.step()
        if rows:
            _accumulate(net, rows)
        if before == [parameter.shape for parameter in net.parameters()] and pruner.current_step >= STEPS:
            raise ValueError(f"torch-pruning cannot reach {keep:.0%}")
    net.zero_grad()
    return net


def heads_and_widths(
    net: nn.Module,
    example: Mapping[str, Tensor],
    attention: Sequence[nn.Module],
    inner: Sequence[nn.Linear],
    share: float,
) -> nn.Module:
    """Remove a share of the heads and of the inner width of every layer of an encoder, by the norm of their groups.

    Args:
        net: The network; a copy is pruned.
        example: Inputs of one call, by name in the order of a call.
        attention: Its attention layers: modules with `query`, `key`, `value` and the number of `heads`.
        inner: The layers that make the inner width.
        share: Of the heads and of the width, what goes.
    """
    paths = {module: path for path, module in net.named_modules()}
    net = copy.deepcopy(net)
    mine = [net.get_submodule(paths[layer]) for layer in attention]
    wide = [net.get_submodule(paths[layer]) for layer in inner]
    counts = {getattr(layer, name): layer.heads for layer in mine for name in ("query", "key", "value")}
    pruned = {*counts, *wide}
    pruner = torch_pruning.pruner.BasePruner(
        net, tuple(example.values()), importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.0, pruning_ratio_dict=dict.fromkeys(wide, share), num_heads=counts,
        prune_num_heads=True, head_pruning_ratio=share, root_module_types=[nn.Linear],
        ignored_layers=[layer for layer in net.modules() if isinstance(layer, nn.Linear) and layer not in pruned],
    )  # fmt: skip
    pruner.step()
    for layer in mine:
        layer.heads = pruner.num_heads[layer.query]
    return net


def tune(net: nn.Module, epochs: Iterable[Iterable[Batch]], plain: Plain, steps: int, loss: Loss) -> None:
    """Fine-tune in place: AdamW, one cycle, bfloat16.

    Args:
        net: What to train, on the device of its weights.
        epochs: The batches of each epoch.
        plain: Rates.
        steps: Batches of all epochs.
        loss: What becomes small.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=plain.rate, weight_decay=plain.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plain.rate, total_steps=steps)
    net.train()
    for batches in epochs:
        for inputs, truth in batches:
            with torch.autocast(device.type, torch.bfloat16):
                given = net(*(item.to(device) for item in inputs))
            found = next(iter(given.values())) if isinstance(given, dict) else given
            error = loss(found.float(), truth.to(device))
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def _twin(net: nn.Module, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    path = next(path for path, module in net.named_modules() if module is head)
    net = copy.deepcopy(net)
    return net, net.get_submodule(path)


def _accumulate(net: nn.Module, rows: Iterable[Batch]) -> None:
    """Leave the gradients of the loss over some rows in the network."""
    device = next(net.parameters()).device
    net.zero_grad()
    for inputs, classes in rows:
        functional.cross_entropy(net(*(item.to(device) for item in inputs)), classes.to(device)).backward()
