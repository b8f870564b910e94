"""What a student gives should be what its teacher gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.distillation import distances
from modelpack.numerics.distillation.tasks import CrossEntropy, LanguageModelling, MultiLabel, chosen, class_axis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.distances import Distance
    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Seen
    from modelpack.numerics.distillation.tasks import Task

ALL = ""
"""Stands for every output."""


@dataclass(frozen=True)
class Outputs:
    """Every output of floats, compared by a distance of its own.

    Attributes:
        task: What the truth says, if anything: the output that it is about is compared as a distribution where it
            holds scores of classes or labels, unless `wanted` says otherwise; any other by its relative error.
        wanted: Output → distance; `ALL` stands for those not named.
        temperature: Softens the distributions.
    """

    task: Task | None = None
    wanted: Mapping[str, Distance] = field(default_factory=dict)
    temperature: float = 4.0

    def loss(self, student: Seen, teacher: Seen, question: Question) -> Tensor:
        """Average over outputs.

        Raises:
            StageError: When the two models do not give the same outputs, or nothing that could be compared.
        """
        compatible(student.outputs, teacher.outputs)
        unknown = [name for name in self.wanted if name != ALL and name not in teacher.outputs]
        if unknown:
            hint = did_you_mean(unknown[0], teacher.outputs)
            raise StageError(f"the model has no output '{unknown[0]}'", where="distance", then=hint)
        judged = self._judged(teacher.outputs)
        found = [
            self._apart(name, student.outputs[name].float(), value.float(), question, judged=name == judged)
            for name, value in teacher.outputs.items()
            if value.is_floating_point()
        ]
        if not found:
            raise StageError("the teacher gives no numbers that a student could imitate")
        return torch.stack(found).mean()

    def remarks(self) -> list[str]:
        """Nothing is chosen here."""
        return []

    def distance(self, name: str, *, judged: bool) -> Distance:
        """Say how an output is compared, and the one that is `judged` by the truth."""
        asked = self.wanted.get(name, self.wanted.get(ALL))
        if asked is not None:
            return asked
        return "kl" if judged and isinstance(self.task, (CrossEntropy, LanguageModelling, MultiLabel)) else "mse"

    def _judged(self, outputs: Mapping[str, Tensor]) -> str | None:
        output = getattr(self.task, "output", None)
        return chosen(outputs, output) if output is not None else None

    def _apart(self, name: str, student: Tensor, teacher: Tensor, question: Question, *, judged: bool) -> Tensor:
        distance = self.distance(name, judged=judged)
        if distance == "mse":
            return distances.relative_error(question.kept(student), question.kept(teacher))
        if distance == "kl" and judged and isinstance(self.task, MultiLabel):
            return distances.divergence.labels(student, teacher, self.temperature)
        told = judged and isinstance(self.task, CrossEntropy) and question.truth is not None
        axis = class_axis(teacher, question.classes) if told else distances.axis_of(teacher)
        mine, theirs = (distances.places(question.kept_along(value, axis), name) for value in (student, teacher))
        if distance == "cosine":
            return distances.cosine_distance(mine, theirs)
        if distance == "kl":
            return distances.divergence.classes(mine, theirs, self.temperature)
        return distances.decoupled(mine, theirs, self.temperature, _right(theirs, question) if told else None)


def _right(teacher: Tensor, question: Question) -> Tensor:
    """Give the right class of every real place; the teacher's where the truth does not count."""
    classes = question.classes.flatten()
    if len(classes) != len(teacher):
        classes = question.classes[question.real].flatten()
    return torch.where(classes < 0, teacher.argmax(1), classes)


def compatible(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    """Check that a student gives what its teacher gives.

    Raises:
        StageError: Naming the outputs, or the shapes, that differ.
    """
    missing = [name for name in teacher if name not in student]
    if missing:
        raise StageError(
            f"teacher and student differ in the output '{missing[0]}': the teacher gives {', '.join(teacher)}, "
            f"the student {', '.join(student)}",
            then="name the student's outputs like the teacher's with `outputs:`, or choose another teacher",
        )
    for name, value in teacher.items():
        if student[name].shape != value.shape:
            raise StageError(
                f"teacher and student differ in the output '{name}': the teacher gives {list(value.shape)}, "
                f"the student {list(student[name].shape)}",
                then="change the student's last layer, or choose another teacher",
            )
