"""One training loop for every objective: epochs of steps, each epoch judged, the best one kept."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics.randomness import chained, repeatable, reseed, seeded
from modelpack.numerics.training import crew, layout, precision, sharing, statistics, tensors
from modelpack.numerics.training.batches import head, split
from modelpack.numerics.training.checkpoint import Checkpoints, Progress
from modelpack.numerics.training.compilation import compiled
from modelpack.numerics.training.judging import evaluate
from modelpack.numerics.training.learner import Learner
from modelpack.numerics.training.lesson import Lesson, Trained
from modelpack.numerics.training.objective import SCORE
from modelpack.numerics.training.recompute import recomputed
from modelpack.numerics.training.spread import Pupil, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelpack.numerics.training.batches import Arrays
    from modelpack.numerics.training.sharing import Share

_UNSEEN = 50
"""Steps between two looks at the loss where a look waits for an accelerator, or for other processes."""


def train(student: nn.Module, lesson: Lesson, scratch: Path) -> Trained:
    """Train a student in place; it ends in evaluation mode with the best weights.

    The processes of a crew train it together, each with its share of every batch.

    Args:
        student: Its teacher may be of another size, but gives outputs of the same shapes.
        lesson: What it learns.
        scratch: Directory where checkpoints are kept; a run that finds one continues from it, and ends with the
            weights that an uninterrupted run would have.

    Raises:
        StageError: When the loss stops being a number, or nothing can be trained.
    """
    with repeatable(lesson.device) as unsteady, _prepared(student, lesson) as pupil:
        course = Course(pupil, lesson, scratch)
        while not course.finished:
            course.epoch()
            course.judge()
            course.save()
        tensors.restore(pupil.student, course.best)
    student.eval()
    progress = course.progress
    best = progress.best_epoch, progress.best
    return Trained(progress.history, *best, course.figures, course.resumed, tuple(sorted(unsteady)))


@contextlib.contextmanager
def _prepared(student: nn.Module, lesson: Lesson) -> Iterator[Pupil]:
    """Let a student compute in the way that its lesson asks for, for as long as this is open."""
    schedule = lesson.schedule
    example, _ = split(head(lesson.data.labelled(), 2), lesson.device)
    with contextlib.ExitStack() as open_:
        open_.enter_context(layout.channels_last(student, example))
        if schedule.recompute:
            open_.enter_context(recomputed(student))
        pupil = open_.enter_context(spread(student, lesson.objective, schedule.parallel, lesson.device))
        if schedule.compile:
            open_.enter_context(compiled(pupil.student))
        yield pupil


class Course:
    """A training under way.

    Attributes:
        progress: How far it is.
        best: The weights of the best epoch, on the CPU.
        resumed: Where an interrupted try had come; empty when there was none.
    """

    def __init__(self, pupil: Pupil, lesson: Lesson, scratch: Path) -> None:
        self.student, self.lesson = pupil.student, lesson
        self.learner = Learner(pupil, lesson)
        self.checkpoints = Checkpoints(scratch)
        self._sums: dict[str, Tensor] = {}
        self.resumed = ""
        found = self.checkpoints.read()
        if found is not None:
            self._continue(*found)
            return
        self.progress, self.best = Progress(), tensors.copied(self.student)
        if lesson.held_out is not None:
            judged = evaluate(self.student, lesson)
            self.progress.best = judged[SCORE]
            self.progress.history.append({"epoch": 0, **judged})

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or so many without a better score that patience is over."""
        progress, schedule = self.progress, self.lesson.schedule
        if progress.step == 0 and schedule.patience is not None and progress.history and SCORE in progress.history[-1]:
            return progress.epoch >= min(schedule.epochs, progress.best_epoch + schedule.patience)
        return progress.epoch >= schedule.epochs

    @property
    def figures(self) -> dict[str, float]:
        """What was judged of the best epoch, for people."""
        kept = [line for line in self.progress.history if line["epoch"] == self.progress.best_epoch]
        return {name: value for line in kept for name, value in line.items() if name.startswith("eval_")}

    def epoch(self) -> None:
        """Learn from all rows once, or from those that an interrupted try had not come to."""
        progress, lesson = self.progress, self.lesson
        epoch, began = progress.epoch + 1, time.monotonic() - progress.seconds
        sharing.expect_as_many(lesson.data.steps)
        patience = 1 if lesson.device.type == "cpu" and crew.size() == 1 else _UNSEEN
        unseen: list[Tensor] = []
        self.student.train()
        if lesson.still:
            statistics.still(self.student)
        with seeded(lesson.seed, lesson.device):
            groups = itertools.islice(self._groups(epoch), progress.step, None)
            for batches in lesson.watch(groups, self._steps, f"epoch {epoch} of {lesson.schedule.epochs}"):
                unseen.append(self._step(batches))
                if len(unseen) >= patience:
                    self._look(unseen)
                    progress.seconds = time.monotonic() - began
                    self.save()
        self._look(unseen)
        if progress.step == 0:
            raise StageError("the data hold no rows to train on")
        if broken := tensors.not_finite(self.student):
            self._give_up(f"'{broken[0]}' holds no finite numbers any longer after epoch {epoch}")
        progress.seconds = time.monotonic() - began

    def judge(self) -> None:
        """Write the epoch's line of history, and keep its weights when none were better."""
        progress, lesson = self.progress, self.lesson
        epoch = progress.epoch + 1
        sums = crew.summed({name: float(value) for name, value in self._sums.items()})
        means = {name: value / (progress.rows * crew.size()) for name, value in sums.items()}
        line: dict[str, Any] = {"epoch": epoch, **means, "lr": self._rate(progress.step - 1)}
        with self.learner.judged():
            judged = evaluate(self.student, lesson) if self._counts(epoch) else {}
            score = judged.get(SCORE)
            if lesson.held_out is None or (score is not None and (progress.best is None or score > progress.best)):
                progress.best, progress.best_epoch = score, epoch
                self.best = tensors.copied(self.student)
        progress.history.append({**line, **judged, "seconds": round(progress.seconds, 3)})
        progress.epoch, progress.step, progress.rows, progress.seconds = epoch, 0, 0, 0.0
        self._sums = {}

    def save(self) -> None:
        """Write a checkpoint when one is due."""
        if self.checkpoints.due():
            sums = {f"sums/{name}": tensors.copy(value) for name, value in self._sums.items()}
            parts = {"student": tensors.copied(self.student), "best": self.best}
            self.checkpoints.write(self.progress, {**parts, "training": {**self.learner.state(), **sums}})

    def _continue(self, progress: Progress, parts: dict[str, dict[str, Tensor]]) -> None:
        self.progress, self.best = progress, parts["best"]
        tensors.restore(self.student, parts["student"])
        sums = {name: value for name, value in parts["training"].items() if name.startswith("sums/")}
        self.learner.restore({name: value for name, value in parts["training"].items() if name not in sums})
        self._sums = {name.removeprefix("sums/"): value.to(self.lesson.device) for name, value in sums.items()}
        self.resumed = f"epoch {progress.epoch}"
        if progress.step:
            self.resumed = f"step {progress.step} of epoch {progress.epoch + 1}"

    def _groups(self, epoch: int) -> Iterator[list[tuple[Arrays, Share]]]:
        """Give the batches of each step; what is random in one follows from its number alone."""
        lesson = self.lesson
        batches = sharing.dealt(lesson.data.shuffled(chained(lesson.seed, epoch, 1)))
        base = chained(lesson.seed, epoch, *crew.apart())
        for step in itertools.count():
            reseed(base + step, lesson.device)
            group = list(itertools.islice(batches, lesson.schedule.accumulate))
            if not group:
                return
            yield group

    def _step(self, batches: list[tuple[Arrays, Share]]) -> Tensor:
        """Learn from one step's batches; gives the loss, added up over rows."""
        change = self.lesson.change
        if change is not None:
            batches = [(change(batch, self.progress.epoch + 1), share) for batch, share in batches]
        figures = self.learner.learn(batches, self._rate(self.progress.step))
        for name, value in figures.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.progress.step += 1
        self.progress.rows += sum(share.of for _, share in batches)
        return figures["loss"]

    def _rate(self, step: int) -> float:
        """Give the learning rate of a step of the epoch under way."""
        schedule = self.lesson.schedule
        done = (self.progress.epoch * self._steps + step) / max(1, schedule.epochs * self._steps)
        return schedule.rate * schedule.fraction(done)

    @property
    def _steps(self) -> int:
        return -(-self.lesson.data.steps // self.lesson.schedule.accumulate)

    def _counts(self, epoch: int) -> bool:
        """Whether an epoch is judged: every so many, and the last."""
        schedule = self.lesson.schedule
        return self.lesson.held_out is not None and (epoch % schedule.every == 0 or epoch == schedule.epochs)

    def _look(self, unseen: list[Tensor]) -> None:
        """See that the losses of the last steps are numbers in all processes, and forget them.

        Raises:
            StageError: When one is not.
        """
        values = crew.stacked(torch.stack(unseen)).sum(0).tolist() if unseen else []
        first = self.progress.step - len(values) + 1
        unseen.clear()
        for step, value in enumerate(values, first):
            if not math.isfinite(value):
                self._give_up(f"the loss is {value} in epoch {self.progress.epoch + 1}, step {step}")

    def _give_up(self, what: str) -> NoReturn:
        """Leave the best weights so far, or those of the last checkpoint, where the user finds them.

        Raises:
            StageError: Always.
        """
        full = precision.dtype(self.lesson) is torch.float32
        then = (
            "lower `lr`, " + ("" if full else "use `precision: float32`, ") + "or look for NaN or infinity in the data"
        )
        if self.progress.best_epoch:
            kept = self.checkpoints.keep(self.best, self.progress.best_epoch)
            then += f"; the weights of epoch {self.progress.best_epoch}, the best so far, are in {kept}"
        elif (newest := self.checkpoints.newest) is not None:
            then += f"; the weights of the last checkpoint are in {newest / 'student.safetensors'}"
        raise StageError(what, then=then)
