"""The optimizer, and the rates of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpack.errors import StageError
from modelpack.numerics.training import crew, tensors
from modelpack.numerics.training.depth import depths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.training.schedule import Schedule


def build(student: nn.Module, learned: nn.Module | None, schedule: Schedule) -> torch.optim.Optimizer:
    """Give the optimizer of a student and of what is learned with it.

    Raises:
        StageError: When the student has nothing to train.
    """
    groups = _groups(student, schedule)
    if not groups:
        raise StageError("every parameter of the model is frozen", then="unfreeze some in its factory")
    if learned is not None and (extra := [p for p in learned.parameters() if p.requires_grad]):
        groups.append({"params": extra, "weight_decay": 0.0, "scale": 1.0})
    if schedule.optimizer == "sgd":
        momentum = schedule.momentum
        # Not fused: that kernel leaves the momentum unset when float16 overflows in the first step.
        return torch.optim.SGD(groups, lr=schedule.rate, momentum=momentum, nesterov=momentum > 0, foreach=True)
    return torch.optim.AdamW(groups, lr=schedule.rate, fused=True)


def _groups(student: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Group what is trained by depth, where rates differ by that, and by whether it decays."""
    depth = depths(student) if schedule.layer_decay != 1 else {}
    last = max(depth.values(), default=0)
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            members.setdefault((depth.get(name, last), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": schedule.decay if decays else 0.0,
            "scale": schedule.layer_decay ** (last - layer),
        }
        for (layer, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def pace(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in each group as the fraction that its depth has."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Collect what an optimizer remembers, by the names of parameters, as copies on the CPU."""
    return {
        f"{names[parameter]}/{key}": tensors.copy(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }


def restore(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], kept: Mapping[str, Tensor]) -> None:
    """Put back what `state` collected."""
    slots: dict[str, dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        owner, _, key = name.rpartition("/")
        slots.setdefault(owner, {})[key] = tensor
    for parameter, name in names.items():
        if name in slots:
            optimizer.state[parameter] = {key: _like(parameter, value) for key, value in slots[name].items()}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Bring a value to its parameter's device and layout; counters have none."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    found = torch.zeros_like(parameter, requires_grad=False)
    crew.fill(found, value)
    return found
