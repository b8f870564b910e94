"""What distillation asks of a student: its teacher, the truth, or both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modelpack.numerics.calling import call
from modelpack.numerics.distillation import figures
from modelpack.numerics.distillation.question import question
from modelpack.numerics.distillation.taps import Seen, untold, watch
from modelpack.numerics.distillation.tasks import chosen
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from modelpack.numerics.distillation.answers import Ask
    from modelpack.numerics.distillation.aspects import Aspect, Name
    from modelpack.numerics.distillation.aspects.outputs import Outputs
    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Tap
    from modelpack.numerics.distillation.tasks import Task


@dataclass(frozen=True)
class Imitation:
    """A teacher and the truth, and how they are weighed.

    Attributes:
        teacher: Gives what `taps.Told` gives, on the student's device.
        outputs: How outputs are compared, whether they are imitated or only judged.
        aspects: What is imitated, with its weight.
        task: What the truth says; None without one.
        alpha: Weight of the teacher; the truth has 1 - alpha. Without a task the teacher is all there is.
        mask: The input that tells padded positions, if there is one.
        taps: Where aspects look inside the student, and inside the teacher.
        learned: Projections of the student's features; they are thrown away afterwards.
        absent: Aspects that gave way, for the two models have nothing that belongs together.
    """

    teacher: Ask
    outputs: Outputs
    aspects: Mapping[Name, tuple[float, Aspect]]
    task: Task | None = None
    alpha: float = 1.0
    mask: str | None = None
    taps: tuple[tuple[Tap, ...], tuple[Tap, ...]] = field(default=((), ()))
    learned: nn.Module | None = None
    absent: tuple[Name, ...] = ()

    def losses(self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compare a student with its teacher and with the truth.

        Raises:
            StageError: When they do not fit each other.
        """
        asked = question(inputs, beside, self.mask)
        seen = watch(student, inputs, self.taps[0])
        wanted = untold(self.teacher(inputs), self.taps[1]) if self.imitates else None
        # Products of many features leave the range of float16, and small differences that of bfloat16.
        with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
            parts = self._imitated(seen, wanted, asked) if wanted is not None else {}
            if self.task is None:
                return {"loss": parts["imitation"], **parts}
            if self.alpha < 1:
                parts["task"] = self.task.loss(seen.outputs, asked)
        weights = {"imitation": self.alpha, "task": 1 - self.alpha}
        return {"loss": torch.stack([weights[name] * parts[name] for name in weights if name in parts]).sum(), **parts}

    @property
    def imitates(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.task is None or self.alpha > 0

    def _imitated(self, seen: Seen, wanted: Seen, asked: Question) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        weighed = []
        for name, (weight, aspect) in self.aspects.items():
            found[name] = aspect.loss(seen, wanted, asked)
            weighed.append(weight * found[name])
        return {"imitation": torch.stack(weighed).sum(), **(found if len(found) > 1 else {})}

    def judge(
        self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]
    ) -> dict[str, tuple[float, int]]:
        """Judge by the task; without one, by how far the outputs are from the teacher's.

        Raises:
            StageError: When the truth that the task needs is not there.
        """
        asked = question(inputs, beside, self.mask)
        seen = Seen(call(student, inputs))
        if self.task is not None:
            return self.task.judge(seen.outputs, asked)
        wanted = untold(self.teacher(inputs), self.taps[1])
        count = len(next(iter(inputs.values())))
        distance = float(self.outputs.loss(seen, wanted, asked))
        name = chosen(wanted.outputs, "")
        classes = self.outputs.distance(name, judged=False) in ("kl", "dkd")
        alike = figures.alike(seen.outputs[name], wanted.outputs[name], asked, classes=classes)
        return {SCORE: (-distance * count, count), **alike}

    def remarks(self) -> list[str]:
        """Say what was chosen by itself, and what was added to the student for its training."""
        gone = [f"compares no {name}: nothing of the two models belongs together by itself" for name in self.absent]
        return [*gone, *(text for _, aspect in self.aspects.values() for text in aspect.remarks())]

    def figure(self, score: float) -> tuple[str, float]:
        """Name what decides."""
        return ("eval_distance", -score) if self.task is None else self.task.figure(score)
