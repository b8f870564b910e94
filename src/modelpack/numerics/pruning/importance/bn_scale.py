"""Importance ``bn_scale``: the size of a channel's batch-norm scales (Liu et al., Network Slimming, ICCV 2017)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.pruning.surgery import Member


def bn_scale(module: nn.Module, groups: Iterable[Group]) -> list[list[float]]:
    """Score blocks by the absolute scales of the batch norms they pass; infinite where they pass none.

    Raises:
        StageError: When no group passes a batch norm.
    """
    modules = dict(module.named_modules())
    scores: list[list[float]] = []
    for group in groups:
        scales = [_scales(member, modules) for member in group.members if _is_norm(modules.get(member.path))]
        width = len(group.members[0].places)
        total = torch.stack(scales).mean(0) if scales else torch.full((width,), math.inf)
        scores.append([float(total[list(block)].sum()) for block in group.blocks])
    if all(math.isinf(value) for group_scores in scores for value in group_scores):
        raise StageError(
            "importance bn_scale needs channels that pass a batch norm, and the model has none",
            then="use importance: l2 or taylor",
        )
    return scores


def _is_norm(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine  # noqa: SLF001  the common class


def _scales(member: Member, modules: Mapping[str, nn.Module]) -> Tensor:
    """Sum the scales that go with each root index."""
    scales = modules[member.path].get_parameter("weight").detach().abs().double().cpu()
    return torch.stack([scales[list(places)].sum() for places in member.places])
