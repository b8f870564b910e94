"""Distillation: a student learns from a teacher's outputs, from the truth, or from both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from modelpack.errors import StageError
from modelpack.numerics.distillation.batches import Rows, split
from modelpack.numerics.distillation.loop import Lesson, Schedule, Trained, train
from modelpack.numerics.distillation.losses import Goal, task_for
from modelpack.numerics.distillation.statistics import reestimate_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from modelpack.numerics.distillation.batches import Arrays

__all__ = [
    "Goal",
    "Lesson",
    "Rows",
    "Schedule",
    "Trained",
    "device",
    "goal",
    "reestimate",
    "remarks",
    "scored",
    "train",
]

device = torch.device


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


def reestimate(student: nn.Module, lesson: Lesson) -> int:
    """Measure the statistics of a student's batch norms anew on the lesson's data; gives how many there are."""
    picked = lesson.watch(lesson.data.picked(), 0, "batch norms")
    return reestimate_all(student, (split(batch, lesson.device)[0] for batch in _without_lone_row(picked)))


def _without_lone_row(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    """Leave out a last batch of a single row, whose values do not vary; not where all batches are like that."""
    largest = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        largest = max(largest, size)
        if size > 1 or largest == 1:
            yield batch


def remarks(trained: Trained, lesson: Lesson) -> list[str]:
    """Say what a user should know about a training."""
    found = []
    if trained.resumed:
        found.append(f"continued after epoch {trained.resumed} of an interrupted try")
    if lesson.held_out is not None:
        found.append(f"kept epoch {trained.best_epoch} of {lesson.schedule.epochs}, the best on the evaluation data")
    if lesson.schedule.epochs > trained.resumed and not lesson.data.fits:
        found.append("the data are too large to shuffle at once: rows were shuffled within windows of 512 MiB")
    return found


def scored(trained: Trained, judged: Goal) -> tuple[str, float]:
    """Give the name and value of the figure that evaluation gave."""
    assert trained.score is not None, "called only after an evaluation"
    if judged.task == "cross_entropy":
        return "eval_accuracy", trained.score
    return ("eval_loss" if judged.task == "mse" else "eval_distance"), -trained.score
