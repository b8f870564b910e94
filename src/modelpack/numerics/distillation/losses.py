"""What a student is asked for: the truth (task loss) and its teacher's outputs (imitation loss)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.training import sharing

if TYPE_CHECKING:
    from collections.abc import Mapping

Task = Literal["cross_entropy", "mse", "none"]


@dataclass(frozen=True)
class Goal:
    """How outputs are judged.

    Attributes:
        task: Loss against the truth; ``none`` when there is none.
        output: The output that the truth is about; the first one when empty.
        temperature: Softens both distributions where outputs are compared as distributions.
        alpha: Weight of the imitation loss; the task loss has 1 - alpha. Without a task it is all there is.
    """

    task: Task
    output: str = ""
    temperature: float = 4.0
    alpha: float = 0.7

    def judged(self, outputs: Mapping[str, Tensor]) -> str:
        """Give the name of the output that the truth is about.

        Raises:
            StageError: When there is no such output.
        """
        name = self.output or next(iter(outputs))
        if name not in outputs:
            raise StageError(f"the model has no output '{name}'", then=did_you_mean(name, outputs))
        return name


def task_for(label: Tensor | None) -> Task:
    """Choose the task loss by the truth's element type: classes for integers, values for floats."""
    if label is None:
        return "none"
    return "mse" if label.is_floating_point() else "cross_entropy"


def task_loss(outputs: Mapping[str, Tensor], label: Tensor, goal: Goal) -> Tensor:
    """Compare the judged output with the truth, averaged over all elements of the truth.

    Raises:
        StageError: When their shapes do not fit each other, or a class number has no logit.
    """
    output = outputs[goal.judged(outputs)].float()
    if goal.task == "mse":
        if output.numel() != label.numel():
            raise StageError(f"the truth has the shape {list(label.shape)}, the output {list(output.shape)}")
        return functional.mse_loss(output.reshape(label.shape), label.float())
    logits, classes = aligned(output, label)
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise StageError(
            f"the labels run from {int(classes.min())} to {int(classes.max())}, the model has {logits.shape[1]} classes"
        )
    return functional.cross_entropy(logits, classes)


def aligned(output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Bring logits to (rows, classes, …) and class numbers to (rows, …).

    Raises:
        StageError: When the shapes do not fit each other.
    """
    classes = label.long()
    if classes.ndim == output.ndim and classes.shape[-1] == 1:
        classes = classes.squeeze(-1)
    if output.shape[:1] + output.shape[2:] == classes.shape:
        return output, classes
    if output.shape[:-1] == classes.shape:
        return output.movedim(-1, 1), classes
    raise StageError(
        f"labels of the shape {list(label.shape)} do not fit an output of the shape {list(output.shape)}",
        then="class numbers have the output's shape without the dimension of classes",
    )


def imitation_loss(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], label: Tensor | None, goal: Goal
) -> Tensor:
    """Compare every output with the teacher's, averaged over outputs.

    The output judged by classes is compared as a distribution: Kullback-Leibler divergence at the goal's temperature,
    times its square, so that gradients keep their size (Hinton et al., 2015). Any other is compared by squared error
    relative to the variance of the teacher's values.

    Raises:
        StageError: When the two models do not give the same outputs.
    """
    losses = []
    for name, wanted in teacher.items():
        if name not in student or student[name].shape != wanted.shape:
            raise StageError(f"teacher and student differ in the output '{name}'", then="choose another teacher")
        if not wanted.is_floating_point():
            continue
        if goal.task == "cross_entropy" and label is not None and name == goal.judged(teacher):
            losses.append(_divergence(student[name].float(), wanted.float(), label, goal.temperature))
        else:
            losses.append(_relative_error(student[name].float(), wanted.float()))
    if not losses:
        raise StageError("the teacher gives no numbers that a student could imitate")
    return torch.stack(losses).mean()


def _divergence(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    logits, wanted = aligned(student, label)[0] / temperature, aligned(teacher, label)[0] / temperature
    per_class = functional.kl_div(
        functional.log_softmax(logits, 1), functional.log_softmax(wanted, 1), reduction="none", log_target=True
    )
    return per_class.sum(1).mean() * temperature**2


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    spread = sharing.variance(teacher).clamp_min(1e-8) if sharing.held(teacher) > 1 else torch.ones_like(teacher).mean()
    return functional.mse_loss(student, teacher) / spread


def correct(outputs: Mapping[str, Tensor], label: Tensor, goal: Goal) -> tuple[int, int]:
    """Count the right class decisions, and all decisions."""
    logits, classes = aligned(outputs[goal.judged(outputs)], label)
    return int((logits.argmax(1) == classes).sum()), classes.numel()


def sensitivity(outputs: Mapping[str, Tensor], directions: torch.Generator) -> Tensor:
    """Project the outputs on a random direction, each output in units of its spread.

    The squared gradient of this, averaged over directions, is the squared change of the outputs: the second-order
    term of self-distillation, whose own gradient vanishes at the unpruned model.
    """
    parts = []
    for value in outputs.values():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=directions).to(value.device)
            spread = value.detach().float().std(correction=0).clamp_min(1e-6)
            parts.append((value.float() * noise).sum() / spread)
    return torch.stack(parts).sum()
