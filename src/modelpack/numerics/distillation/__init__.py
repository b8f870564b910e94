"""Distillation: a student learns from a teacher's outputs and inner values, from the truth, or from all of them."""

from modelpack.numerics.distillation.aspects.outputs import ALL
from modelpack.numerics.distillation.imitation import Imitation
from modelpack.numerics.distillation.planning import (
    Wish,
    expect_same_outputs,
    imitation,
    judged_by_truth,
    task_for,
)
from modelpack.numerics.distillation.remembering import remembered, remembering
from modelpack.numerics.distillation.tasks import Own, Task

__all__ = [
    "ALL",
    "Imitation",
    "Own",
    "Task",
    "Wish",
    "expect_same_outputs",
    "imitation",
    "judged_by_truth",
    "remembered",
    "remembering",
    "task_for",
]
