"""Distillation: a student learns from a teacher's outputs, from the truth, or from both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from modelpack.errors import StageError
from modelpack.numerics.distillation.imitation import Imitation
from modelpack.numerics.distillation.losses import Goal, task_for
from modelpack.numerics.training.batches import split

if TYPE_CHECKING:
    from modelpack.numerics.training.batches import Rows

__all__ = ["Goal", "Imitation", "goal"]


def goal(
    data: Rows,
    task: Literal["auto", "cross_entropy", "mse", "none"],
    *,
    output: str,
    temperature: float,
    alpha: float,
) -> Goal:
    """Decide the losses, looking at the first batch for a truth and its type.

    Raises:
        StageError: When a task is asked for and the data hold no truth, or the truth cannot be classes.
    """
    _, truth = split(data.labelled(), torch.device("cpu"))
    chosen = task_for(truth) if task == "auto" else task
    if chosen != "none" and truth is None:
        raise StageError(f"task {task} needs the column '{data.target}', which the data lack", then="set target")
    if chosen == "cross_entropy" and truth is not None and truth.is_floating_point():
        raise StageError(f"task cross_entropy needs integers in the column '{data.target}'", then="use task: mse")
    if chosen == "none" and alpha == 0:
        raise StageError("alpha is 0 and the data hold no truth: there is nothing to learn", then="set alpha")
    return Goal(chosen, output, temperature, alpha)
