"""Projections of a student's features to the width of its teacher's (FitNets: Romero et al. 2015, arXiv 1412.6550).

Each begins as the ridge regression of the teacher's features on the student's, so that from the first step on the
student learns what it lacks, and not what a random matrix makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.numerics.distillation.question import Question

_RIDGE = 1e-3
"""Penalty on the weights, in units of the mean variance of the student's features."""

_PLACES = 2**16
"""Most places, spread evenly, that a regression is fitted to: all those of large images would fill the memory."""


class Projections(nn.Module):
    """Some projections, called as one module, for only a module that is called can lie in parts with several processes.

    Attributes:
        axes: Name → the dimension whose width it changes.
    """

    def __init__(self, made: Mapping[str, nn.Linear], axes: Mapping[str, int]) -> None:
        super().__init__()
        self.made, self.axes = nn.ModuleDict(made), dict(axes)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Project features by the names of their projections; their width is the last dimension."""
        return {name: self.made[name](value) for name, value in given.items()}


def width_axis(student: Tensor, teacher: Tensor) -> int | None:
    """Find the one dimension in which two features differ; None when they differ otherwise, or not at all."""
    if student.ndim != teacher.ndim:
        return None
    unlike = [axis for axis, sizes in enumerate(zip(student.shape, teacher.shape, strict=True)) if sizes[0] != sizes[1]]
    return unlike[0] if len(unlike) == 1 and unlike[0] > 0 else None


@torch.no_grad()
def fitted(student: Tensor, teacher: Tensor, axis: int, question: Question) -> nn.Linear:
    """Make a projection of features that differ in their width along `axis`, fitted to one batch of them.

    Args:
        student: Features ``[rows, …]``.
        teacher: Features of the same shape but for `axis`.
        axis: Where the widths are.
        question: Says which positions are real.
    """
    given, wanted = (_sample(question.kept_along(value, axis)) for value in (student, teacher))
    middle, aim = given.mean(0), wanted.mean(0)
    centred = given - middle
    square = centred.T @ centred / len(given)
    penalty = _RIDGE * square.diagonal().mean().clamp_min(1e-12)
    slopes = torch.linalg.solve(
        square + penalty * torch.eye(len(square), dtype=torch.float64), centred.T @ (wanted - aim) / len(given)
    )
    # Made without memory first, so that weights that are put in now draw no random numbers.
    made = nn.Linear(given.shape[1], wanted.shape[1], device="meta").to_empty(device=student.device)
    made.weight.copy_(slopes.T)
    made.bias.copy_(aim - middle @ slopes)
    return made


def _sample(value: Tensor) -> Tensor:
    """Give rows ``[places, width]`` of values ``[…, width]``."""
    rows = value.flatten(0, -2)
    every = max(1, -(-len(rows) // _PLACES))
    return rows[::every].double().cpu()
