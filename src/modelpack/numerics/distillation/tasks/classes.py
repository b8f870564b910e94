"""One class is right: of every row, or of every place in it, such as a token or a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation import averages
from modelpack.numerics.distillation.question import IGNORED
from modelpack.numerics.distillation.tasks.chosen import chosen
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question


@dataclass(frozen=True)
class CrossEntropy:
    """Classification of rows or of places in them, by the shape of the truth.

    Attributes:
        output: The output that holds the logits; the first one when empty.
        smoothing: Share of the truth's certainty that is spread over all classes (Szegedy et al. 2016,
            arXiv 1512.00567).
    """

    output: str = ""
    smoothing: float = 0.0
    name: str = "cross_entropy"

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Give the mean over all places that count."""
        return entropy(*self.decisions(outputs, question), self.smoothing)

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Count right decisions."""
        return {SCORE: right(*self.decisions(outputs, question))}

    def figure(self, score: float) -> tuple[str, float]:
        """The share of right decisions."""
        return "eval_accuracy", score

    def decisions(self, outputs: Mapping[str, Tensor], question: Question) -> tuple[Tensor, Tensor]:
        """Bring logits to ``[places, classes]`` and the truth to ``[places]``, those left out that do not count.

        Raises:
            StageError: When the shapes do not fit each other, or a class number has no logit.
        """
        output, classes = outputs[chosen(outputs, self.output)].float(), question.classes
        axis = class_axis(output, classes)
        return counted(output.movedim(axis, -1).flatten(0, -2), classes.flatten())


def class_axis(output: Tensor, classes: Tensor) -> int:
    """Find the dimension of classes: the second, or the last.

    Raises:
        StageError: When class numbers of this shape fit neither.
    """
    shape = classes.shape
    if classes.ndim == output.ndim and shape[-1] == 1:
        shape = shape[:-1]
    if output.ndim > 1 and output.shape[:1] + output.shape[2:] == shape:
        return 1
    if output.ndim > 1 and output.shape[:-1] == shape:
        return output.ndim - 1
    raise StageError(
        f"labels of the shape {list(classes.shape)} do not fit an output of the shape {list(output.shape)}",
        then="class numbers have the output's shape without the dimension of classes",
    )


def counted(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the places that do not count.

    Raises:
        StageError: When a class number has no logit.
    """
    counts = classes != IGNORED
    logits, classes = logits[counts], classes[counts]
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise StageError(
            f"the labels run from {int(classes.min())} to {int(classes.max())}, "
            f"the model has {logits.shape[1]} classes",
            then="name the column of the truth as `target`, or the output that it is about as `output`",
        )
    return logits, classes


def entropy(logits: Tensor, classes: Tensor, smoothing: float) -> Tensor:
    """Give the mean cross entropy of ``[places, classes]``; 0 where no place counts."""
    return averages.mean(functional.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing))


def right(logits: Tensor, classes: Tensor) -> tuple[float, int]:
    """Count the right decisions, and all; NaN are right where a logit is NaN, for the largest is then unknown."""
    hits = float((logits.argmax(1) == classes).sum())
    return math.nan if bool(logits.isnan().any()) else hits, len(classes)
