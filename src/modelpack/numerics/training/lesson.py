"""What training is given, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from modelpack.numerics.training.batches import Arrays, Rows
    from modelpack.numerics.training.objective import Objective
    from modelpack.numerics.training.schedule import Schedule

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Passes items through while showing progress: items, how many, what they are."""

Change = Callable[["Arrays", int], "Arrays"]
"""Gives the rows of a batch as they are in an epoch, counted from 1."""

Constraint = Callable[["nn.Module"], None]
"""Makes true of a student's weights, in place, what must be true of them, such as their zeros."""


@dataclass(frozen=True)
class Lesson:
    """All that a student learns from, and how.

    Attributes:
        objective: The losses, and what is judged.
        data: What the student learns from.
        held_out: What each epoch is judged on; without it the last epoch counts.
        schedule: The optimizer's settings.
        device: Where everything runs, the student included.
        seed: Order of rows and dropout follow from it.
        watch: Shows progress.
        constraint: Applied to the student after every step of the optimizer.
        change: Applied to the rows that the student learns from, not to those that judge it.
        still: Whether batch norms keep their statistics, and normalise by them while the student learns.
    """

    objective: Objective
    data: Rows
    held_out: Rows | None
    schedule: Schedule
    device: torch.device
    seed: int
    watch: Watch = lambda items, _total, _label: items
    constraint: Constraint | None = None
    change: Change | None = None
    still: bool = False


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        history: By epoch, 0 being the untrained student: losses, score, learning rate, seconds.
        best_epoch: The epoch whose weights the student has now.
        score: Its score; None without data to evaluate on.
        figures: By name, how people read that epoch's score, and what else was judged.
        resumed: Where an earlier, interrupted try had come; empty when there was none.
        unsteady: Operators that may give other bits the next time.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    score: float | None
    figures: dict[str, float]
    resumed: str
    unsteady: tuple[str, ...] = ()
