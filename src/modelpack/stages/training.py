"""What stages that train a student from its teacher have in common: their settings, and the lesson these ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.stage import DataRef, Job, TorchRef
from modelpack.stages import remarks
from modelpack.stages.schedule_config import ScheduleConfig, schedule

if TYPE_CHECKING:
    from modelpack.numerics.distillation import Goal
    from modelpack.numerics.training import Lesson


class LessonConfig(ScheduleConfig):
    """Who teaches, on which rows, and how long."""

    teacher: TorchRef = Field("model", description="The step whose model is imitated; 'model' is the original.")
    data: DataRef = Field(description="Rows to learn from.")
    eval_data: DataRef | None = Field(None, description="Rows that judge each epoch; the best epoch is kept.")


class TrainingConfig(LessonConfig):
    """Who teaches what, and how long."""

    target: str = Field("label", description="Column of the truth, where the data have one.")
    output: str = Field("", description="Output that the truth is about; the first one when empty.")
    task: Literal["auto", "cross_entropy", "mse", "none"] = Field(
        "auto", description="Loss against the truth; auto: cross_entropy for integers, mse for floats, else none."
    )
    temperature: float = Field(4.0, gt=0, description="Softens class probabilities before they are compared.")
    alpha: float = Field(0.7, ge=0, le=1, description="Weight of the teacher; the truth has 1 - alpha.")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.task == "none" and self.alpha == 0:
            raise ValueError("with task none and alpha 0 there is nothing to learn")
        return self


def training(config: TrainingConfig, job: Job) -> Lesson:
    """Prepare what settings ask for: the teacher, rows, losses and the optimizer's schedule.

    Raises:
        StageError: When the teacher has other inputs than the student, or the data lack the truth that the task needs.
    """
    from modelpack.numerics import distillation
    from modelpack.numerics import training as loop

    target = None if config.task == "none" else config.target
    goal = distillation.goal(
        loop.Rows(job.data[config.data].batches, job.inputs, target),
        config.task,
        output=config.output,
        temperature=config.temperature,
        alpha=config.alpha,
    )
    if goal.task == "none" != config.task:
        job.note(f"the data have no truth (column '{config.target}'): the student learns from the teacher alone")
    return lesson(config, job, goal, target)


def lesson(config: LessonConfig, job: Job, goal: Goal, target: str | None = None) -> Lesson:
    """Load the teacher and name the rows, with the column `target` of the truth where it counts.

    Raises:
        StageError: When the teacher has other inputs than the student.
    """
    from modelpack.numerics import distillation, models
    from modelpack.numerics import training as loop

    models.expect_same_inputs(job.steps[config.teacher], job.source)
    remarks.invented({config.data, config.eval_data}, job)

    def rows(name: str) -> loop.Rows:
        return loop.Rows(job.data[name].batches, job.inputs, target)

    return loop.Lesson(
        distillation.Imitation(models.load(job.steps[config.teacher], job.device), goal),
        rows(config.data),
        rows(config.eval_data) if config.eval_data else None,
        schedule(config),
        loop.device(job.device),
        job.seed,
        job.track,
    )
