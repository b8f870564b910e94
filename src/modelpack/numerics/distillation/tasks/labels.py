"""Any number of labels is right, each a yes or no of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation.tasks.chosen import chosen
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question


@dataclass(frozen=True)
class MultiLabel:
    """Binary cross entropy of logits against columns of 0 and 1.

    Attributes:
        output: The output that holds the logits; the first one when empty.
        smoothing: Share of the truth's certainty that is taken away, half of it from each side.
    """

    output: str = ""
    smoothing: float = 0.0
    name: str = "multi_label"

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Give the mean over all rows and labels."""
        logits, truth = self._pair(outputs, question)
        soft = truth * (1 - self.smoothing) + 0.5 * self.smoothing
        return functional.binary_cross_entropy_with_logits(logits, soft)

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Count for F1 over all labels together, and the right decisions; F1 is NaN where a logit is."""
        logits, truth = self._pair(outputs, question)
        said, true = logits > 0, truth > 0.5
        hits = math.nan if bool(logits.isnan().any()) else int((said & true).sum())
        asked = int(said.sum()) + int(true.sum())
        return {SCORE: (2.0 * hits, asked), "eval_accuracy": (float((said == true).sum()), truth.numel())}

    def figure(self, score: float) -> tuple[str, float]:
        """F1 over all labels together: right ones among those said and those true."""
        return "eval_f1", score

    def _pair(self, outputs: Mapping[str, Tensor], question: Question) -> tuple[Tensor, Tensor]:
        logits, truth = outputs[chosen(outputs, self.output)].float(), question.known.float()
        if logits.numel() != truth.numel() or len(logits) != len(truth):
            raise StageError(
                f"labels of the shape {list(truth.shape)} do not fit an output of the shape {list(logits.shape)}",
                then="task multi_label needs one column of 0 and 1 for each logit",
            )
        if not bool(((truth == 0) | (truth == 1)).all()):
            raise StageError("the labels hold values other than 0 and 1", then="use task: cross_entropy, or mse")
        return logits, truth.reshape(logits.shape)
