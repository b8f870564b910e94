"""Training: one loop for every stage that changes weights by their gradients."""

from __future__ import annotations

import torch

from modelpack.numerics.training.batches import Rows
from modelpack.numerics.training.constraints import zeros_kept
from modelpack.numerics.training.lesson import Constraint, Lesson, Trained
from modelpack.numerics.training.loop import train
from modelpack.numerics.training.objective import SCORE, Objective
from modelpack.numerics.training.schedule import Precision, Schedule
from modelpack.numerics.training.statistics import Settled, reader, settle
from modelpack.numerics.training.statistics import count as batch_norms

__all__ = [
    "SCORE",
    "Constraint",
    "Lesson",
    "Objective",
    "Precision",
    "Rows",
    "Schedule",
    "Settled",
    "Trained",
    "batch_norms",
    "device",
    "reader",
    "remarks",
    "settle",
    "train",
    "zeros_kept",
]

device = torch.device


def remarks(trained: Trained, lesson: Lesson) -> list[str]:
    """Say what a user should know about a training."""
    found = []
    if trained.resumed:
        found.append(f"continued after {trained.resumed} of an interrupted try")
    if lesson.held_out is not None:
        epochs, done = lesson.schedule.epochs, trained.history[-1]["epoch"]
        if done < epochs:
            found.append(f"ended after epoch {done} of {epochs}: no better score since epoch {trained.best_epoch}")
        found.append(f"kept epoch {trained.best_epoch} of {done}, the best on the evaluation data")
    if lesson.schedule.epochs and not lesson.data.fits:
        found.append("the data are too large to shuffle at once: rows were shuffled within windows of 512 MiB")
    return found
