"""One training loop for every objective."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.randomness import chained, seeded
from modelpack.numerics.training import checkpoint, crew, sharing
from modelpack.numerics.training.batches import Rows, split
from modelpack.numerics.training.checkpoint import Progress
from modelpack.numerics.training.objective import SCORE
from modelpack.numerics.training.spread import Pupil, spread

if TYPE_CHECKING:
    from pathlib import Path

    from modelpack.numerics.training.objective import Objective
    from modelpack.numerics.training.schedule import Schedule

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Passes items through while showing progress: items, how many, what they are."""


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
    """

    objective: Objective
    data: Rows
    held_out: Rows | None
    schedule: Schedule
    device: torch.device
    seed: int
    watch: Watch = lambda items, _total, _label: items


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        history: By epoch, 0 being the untrained student: losses, score, learning rate.
        best_epoch: The epoch whose weights the student has now.
        score: Its score; None without data to evaluate on.
        figures: By name, how people read that epoch's score, and what else was judged.
        resumed: Epochs that an earlier, interrupted try had done.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    score: float | None
    figures: dict[str, float]
    resumed: int


def train(student: nn.Module, lesson: Lesson, scratch: Path) -> Trained:
    """Train a student in place; it ends in evaluation mode with the best weights.

    The processes of a crew train it together, each with its share of every batch.

    Args:
        student: Its teacher may be of another size, but gives outputs of the same shapes.
        lesson: What it learns.
        scratch: Directory where each epoch's checkpoint is kept; a run that finds one continues from it, and ends
            with the weights that an uninterrupted run would have.

    Raises:
        StageError: When the loss stops being a number, or nothing can be trained.
    """
    with spread(student, lesson.objective, lesson.schedule.parallel, lesson.device) as pupil:
        trained = _train(pupil, lesson, scratch)
    student.eval()
    return trained


def _train(pupil: Pupil, lesson: Lesson, scratch: Path) -> Trained:
    student = pupil.student
    optimizer = _optimizer(student, lesson.schedule)
    scaler = torch.amp.GradScaler(lesson.device.type, enabled=_dtype(lesson) is torch.float16)
    found = checkpoint.resume(scratch, student, optimizer)
    progress, best = found if found is not None else _begin(student, lesson)
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)
    resumed = progress.epoch
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while progress.epoch < lesson.schedule.epochs:
            epoch = progress.epoch + 1
            with seeded(chained(lesson.seed, epoch, *crew.apart()), lesson.device):
                figures = _epoch(pupil, lesson, optimizer, scaler, epoch)
            judged = evaluate(student, lesson) if lesson.held_out is not None else {}
            score = judged.get(SCORE)
            progress.history.append({"epoch": epoch, **figures, **judged})
            progress.epoch, progress.scaler = epoch, scaler.state_dict()
            if score is None or progress.best is None or score > progress.best:
                progress.best, progress.best_epoch = score, epoch
                best = checkpoint.state(student)
            checkpoint.save(scratch, progress, student, optimizer, best)
    checkpoint.restore(student, best)
    return Trained(progress.history, progress.best_epoch, progress.best, _told(progress), resumed)


def _told(progress: Progress) -> dict[str, float]:
    """Give the figures of the best epoch, without the training's own."""
    kept = [line for line in progress.history if line["epoch"] == progress.best_epoch]
    return {name: value for line in kept for name, value in line.items() if name.startswith("eval_")}


def _begin(student: nn.Module, lesson: Lesson) -> tuple[Progress, dict[str, Tensor]]:
    progress = Progress()
    if lesson.held_out is not None:
        judged = evaluate(student, lesson)
        progress.best = judged[SCORE]
        progress.history.append({"epoch": 0, **judged})
    return progress, checkpoint.state(student)


def _epoch(
    pupil: Pupil,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    epoch: int,
) -> dict[str, float]:
    student, schedule, steps = pupil.student, lesson.schedule, lesson.data.steps
    totals: dict[str, float] = {}
    done = 0
    student.train()
    batches = lesson.data.shuffled(chained(lesson.seed, epoch, 1))
    for batch, share in sharing.dealt(lesson.watch(batches, steps, f"epoch {epoch} of {schedule.epochs}")):
        rate = _rate(schedule, ((epoch - 1) * steps + done) / max(1, schedule.epochs * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, truth = split(batch, lesson.device)
        with models.blamed("the model cannot be trained"), _autocast(lesson):
            parts = pupil.losses(inputs, truth, share)
        figures = {name: float(value.detach()) for name, value in parts.items()}
        if not math.isfinite(figures["loss"]):
            raise StageError(
                f"the loss is {figures['loss']} in epoch {epoch}, step {done + 1}",
                then="lower lr, or use precision: float32",
            )
        with models.blamed("the model cannot be trained"):
            _step(student, parts["loss"], optimizer, scaler, schedule.clip)
        done += 1
        totals = {name: totals.get(name, 0.0) + value for name, value in figures.items()}
    student.eval()
    if done == 0:
        raise StageError("the data hold too few rows to train on")
    means = {name: value / (done * crew.size()) for name, value in crew.summed(totals).items()}
    return {**means, "lr": optimizer.param_groups[0]["lr"]}


def _step(
    student: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    if clip:
        nn.utils.clip_grad_norm_(student.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


@torch.no_grad()
def evaluate(student: nn.Module, lesson: Lesson) -> dict[str, float]:
    """Judge a student on the held-out rows: its score, higher being better, and by name the figures for people.

    Raises:
        StageError: When there are no rows, or they lack what the objective needs.
    """
    assert lesson.held_out is not None, "called only with held-out rows"
    student.eval()
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch, counted in sharing.in_turn(lesson.held_out.picked()):
        inputs, truth = split(batch, lesson.device)
        with models.blamed("the model fails on the evaluation data"), _autocast(lesson):
            found = lesson.objective.judge(student, inputs, truth)
        for name, (more, things) in found.items() if counted else ():
            totals[name] = totals.get(name, 0.0) + more
            counts[name] = counts.get(name, 0) + things
    numbers = crew.summed(counts)
    means = {name: total / numbers[name] for name, total in crew.summed(totals).items() if numbers[name]}
    if SCORE not in means:
        raise StageError("the evaluation data hold no rows")
    name, value = lesson.objective.figure(means[SCORE])
    return {**means, name: value}


def _optimizer(student: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trained:
        raise StageError("every parameter of the model is frozen", then="unfreeze some in its factory")
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=schedule.rate)


def _rate(schedule: Schedule, done: float) -> float:
    """Give the learning rate when a fraction of all steps is done."""
    if done < schedule.warmup:
        return schedule.rate * (done + 0.01) / (schedule.warmup + 0.01)
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * (done - schedule.warmup) / max(1e-9, 1 - schedule.warmup)))


def _dtype(lesson: Lesson) -> torch.dtype:
    schedule = lesson.schedule
    if schedule.precision != "auto":
        chosen: torch.dtype = getattr(torch, schedule.precision)
        return chosen
    if lesson.device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@contextlib.contextmanager
def _autocast(lesson: Lesson) -> Iterator[None]:
    dtype = _dtype(lesson)
    if dtype is torch.float32:
        yield
        return
    with torch.autocast(lesson.device.type, dtype=dtype):
        yield
