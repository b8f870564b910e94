"""What distillation asks of a student: its teacher's outputs, the truth, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError
from modelpack.numerics.calling import call
from modelpack.numerics.distillation import losses
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelpack.numerics.distillation.losses import Goal


@dataclass(frozen=True)
class Imitation:
    """A teacher, and how its outputs and the truth are weighed.

    Attributes:
        teacher: On the student's device, in evaluation mode.
        goal: The losses.
    """

    teacher: nn.Module
    goal: Goal
    learned: nn.Module | None = None

    def losses(self, student: nn.Module, inputs: dict[str, Tensor], truth: Tensor | None) -> dict[str, Tensor]:
        """Compare a student's outputs with its teacher's and with the truth.

        Raises:
            StageError: When they do not fit each other.
        """
        goal = self.goal
        outputs = call(student, inputs)
        with torch.no_grad():
            wanted = call(self.teacher, inputs)
        if goal.task == "none" or truth is None:
            imitation = losses.imitation_loss(outputs, wanted, None, goal)
            return {"loss": imitation, "imitation": imitation}
        parts: dict[str, Tensor] = {}
        if goal.alpha > 0:
            parts["imitation"] = losses.imitation_loss(outputs, wanted, truth, goal)
        if goal.alpha < 1:
            parts["task"] = losses.task_loss(outputs, truth, goal)
        weights = {"imitation": goal.alpha, "task": 1 - goal.alpha}
        return {"loss": torch.stack([weights[name] * value for name, value in parts.items()]).sum(), **parts}

    def judge(
        self, student: nn.Module, inputs: dict[str, Tensor], truth: Tensor | None
    ) -> dict[str, tuple[float, int]]:
        """Count right decisions where the truth is classes; else add up the negative loss: without truth, imitation.

        Raises:
            StageError: When the truth that the task needs is not there.
        """
        goal = self.goal
        outputs = call(student, inputs)
        count = len(next(iter(inputs.values())))
        if goal.task == "none":
            wanted = call(self.teacher, inputs)
            return {SCORE: (-float(losses.imitation_loss(outputs, wanted, None, goal)) * count, count)}
        if truth is None:
            raise StageError("the evaluation data have no truth, which the task loss needs")
        if goal.task == "mse":
            return {SCORE: (-float(losses.task_loss(outputs, truth, goal)) * count, count)}
        return {SCORE: losses.correct(outputs, truth, goal)}

    def figure(self, score: float) -> tuple[str, float]:
        """Name what `judge` counts."""
        if self.goal.task == "cross_entropy":
            return "eval_accuracy", score
        return ("eval_loss" if self.goal.task == "mse" else "eval_distance"), -score
