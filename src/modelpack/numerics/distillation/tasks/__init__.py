"""Tasks: what the truth says of a student's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from modelpack.errors import StageError
from modelpack.numerics.distillation.tasks.chosen import chosen
from modelpack.numerics.distillation.tasks.classes import CrossEntropy, class_axis
from modelpack.numerics.distillation.tasks.labels import MultiLabel
from modelpack.numerics.distillation.tasks.language import LanguageModelling
from modelpack.numerics.distillation.tasks.own import Own
from modelpack.numerics.distillation.tasks.values import SquaredError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question

__all__ = [
    "CrossEntropy",
    "LanguageModelling",
    "MultiLabel",
    "Own",
    "SquaredError",
    "Task",
    "chosen",
    "class_axis",
    "guess",
    "named",
]


class Task(Protocol):
    """A loss against the truth, and how a student is judged by it."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Give a scalar, averaged over all that counts.

        Raises:
            StageError: When outputs and truth do not fit each other.
        """

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Give totals and counts, as `training.Objective` does.

        Raises:
            StageError: When outputs and truth do not fit each other.
        """

    def figure(self, score: float) -> tuple[str, float]:
        """Name the score, and give its value as people read it."""


def named(name: str, output: str = "", smoothing: float = 0.0) -> Task:
    """Give a task by the name that recipes use."""
    if name == "mse":
        return SquaredError(output)
    kinds: dict[str, Callable[[str, float], Task]] = {
        "cross_entropy": CrossEntropy,
        "language_modelling": LanguageModelling,
        "multi_label": MultiLabel,
    }
    return kinds[name](output, smoothing)


def guess(truth: Tensor, output: Tensor | None = None) -> str:
    """Name the task that a truth speaks of: values for floats, else labels or classes, by the output's shape.

    Columns of 0 and 1 that have the output's own shape are labels; so are 0 and 1 beside a single logit.
    """
    if truth.is_floating_point():
        return "mse"
    alike = output is not None and output.ndim <= 2 and truth.numel() == output.numel()
    return "multi_label" if alike and bool(((truth == 0) | (truth == 1)).all()) else "cross_entropy"


def check(task: str, truth: Tensor, target: str) -> None:
    """Refuse a truth that a task cannot read.

    Raises:
        StageError: When it is of the wrong type.
    """
    if task in ("cross_entropy", "language_modelling") and truth.is_floating_point():
        raise StageError(f"task {task} needs integers in the column '{target}'", then="use task: mse")
