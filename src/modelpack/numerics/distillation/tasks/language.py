"""Language modelling: every position foretells the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics.distillation.tasks import classes
from modelpack.numerics.distillation.tasks.chosen import chosen
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question


@dataclass(frozen=True)
class LanguageModelling:
    """Cross entropy of the token at the next position; the truth is the text's tokens themselves.

    Attributes:
        output: The output that holds the logits, ``[rows, positions, tokens]``; the first one when empty.
        smoothing: As for classes.
    """

    output: str = ""
    smoothing: float = 0.0
    name: str = "language_modelling"

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Give the mean over all positions that count."""
        return classes.entropy(*self.decisions(outputs, question), self.smoothing)

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Add up log-likelihoods, and count right tokens."""
        logits, tokens = self.decisions(outputs, question)
        likelihood = -float(classes.entropy(logits, tokens, 0.0)) * len(tokens)
        return {SCORE: (likelihood, len(tokens)), "eval_accuracy": classes.right(logits, tokens)}

    def figure(self, score: float) -> tuple[str, float]:
        """The perplexity."""
        return "eval_perplexity", math.exp(min(-score, 700.0))

    def decisions(self, outputs: Mapping[str, Tensor], question: Question) -> tuple[Tensor, Tensor]:
        """Set logits ``[places, tokens]`` against the tokens ``[places]`` that follow, where those count.

        Raises:
            StageError: When the shapes do not fit each other, or a token has no logit.
        """
        logits, tokens = outputs[chosen(outputs, self.output)].float(), question.classes
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise StageError(
                f"tokens of the shape {list(tokens.shape)} do not fit an output of the shape {list(logits.shape)}",
                then="language modelling needs logits [rows, positions, tokens] and tokens [rows, positions]",
            )
        return classes.counted(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
