"""How good a student is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.training import crew, sharing
from modelpack.numerics.training.batches import split
from modelpack.numerics.training.objective import SCORE
from modelpack.numerics.training.precision import autocast

if TYPE_CHECKING:
    from torch import nn

    from modelpack.numerics.training.lesson import Lesson


@torch.no_grad()
def evaluate(student: nn.Module, lesson: Lesson) -> dict[str, float]:
    """Judge a student on the held-out rows: its score, higher being better, and by name the figures for people.

    The processes of a crew take turns with the batches. The student ends in evaluation mode.

    Raises:
        StageError: When there are no rows, they lack what the objective needs, or the score is no number.
    """
    assert lesson.held_out is not None, "called only with held-out rows"
    student.eval()
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch, counted in sharing.in_turn(lesson.held_out.picked()):
        inputs, beside = split(batch, lesson.device)
        with models.blamed("the model fails on the evaluation data"), autocast(lesson):
            found = lesson.objective.judge(student, inputs, beside)
        for name, (more, things) in found.items() if counted else ():
            totals[name] = totals.get(name, 0.0) + more
            counts[name] = counts.get(name, 0) + things
    numbers = crew.summed(counts)
    means = {name: total / numbers[name] for name, total in crew.summed(totals).items() if numbers[name]}
    if SCORE not in means:
        raise StageError("the evaluation data hold no rows that count")
    if not math.isfinite(means[SCORE]):
        raise StageError(
            f"the score on the evaluation data is {means[SCORE]}",
            then="look for NaN or infinity in these data, or in what the model gives for them",
        )
    name, value = lesson.objective.figure(means[SCORE])
    return {**means, name: value}
