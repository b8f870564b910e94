"""What stages that train a student from its teacher have in common: their settings, and the lesson these ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from modelpack.bind import UserCode
from modelpack.stage import DataRef, Job, StageConfig, TorchRef
from modelpack.stages import remarks
from modelpack.stages.answers_config import AnswersConfig, remembering
from modelpack.stages.imitation_config import DistanceConfig, ImitationConfig
from modelpack.stages.schedule_config import ScheduleConfig, schedule

if TYPE_CHECKING:
    from modelpack.numerics.distillation import Task, Wish
    from modelpack.numerics.training import Lesson, Rows

TaskSetting = Literal["auto", "cross_entropy", "language_modelling", "multi_label", "mse", "none"] | UserCode
_SMOOTHED = ("auto", "cross_entropy", "language_modelling", "multi_label")


class TeacherConfig(StageConfig):
    """Who teaches, and on which rows."""

    teacher: TorchRef = Field("model", description="The step whose model is imitated; 'model' is the original.")
    data: DataRef = Field(description="Rows to learn from.")
    eval_data: DataRef | None = Field(None, description="Rows that judge each epoch; the best epoch is kept.")


class LessonConfig(ScheduleConfig, AnswersConfig, DistanceConfig, TeacherConfig):
    """Who teaches, on which rows, and how long."""

    @model_validator(mode="after")
    def _judged(self) -> Self:
        for setting in ("patience", "eval_every"):
            if setting in self.model_fields_set and self.eval_data is None:
                raise ValueError(f"`{setting}` is about evaluations: give `eval_data`, or leave it out")
        return self


class TaskConfig(TeacherConfig):
    """What the truth says, and what that counts beside the teacher."""

    target: str = Field("label", min_length=1, description="Column of the truth, where the data have one.")
    output: str = Field("", description="Output that the truth is about; the first one when empty.")
    task: TaskSetting = Field(
        "auto",
        description="Loss against the truth: by name, or a function `file.py:function` of outputs and columns; auto: "
        "cross_entropy for integers, multi_label for 0 and 1 in the output's shape, mse for floats, else none.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the truth's certainty that is spread over all classes."
    )
    alpha: float = Field(0.7, ge=0, le=1, description="Weight of the teacher; the truth has 1 - alpha.")

    @property
    def asks_for_truth(self) -> str:
        """What was set that means nothing without a truth; empty when nothing was."""
        if self.task != "auto":
            return f"task {self.task}"
        set_ = [name for name in ("target", "output", "label_smoothing", "alpha") if name in self.model_fields_set]
        return next((f"`{name}`" for name in set_ if name != "alpha" or self.alpha < 1), "")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.task == "none" and self.alpha == 0:
            raise ValueError("with task none and alpha 0 there is nothing to learn")
        if self.label_smoothing and self.task not in _SMOOTHED:
            raise ValueError("`label_smoothing` needs a task with classes or labels: leave it out")
        for setting in ("target", "output"):
            if isinstance(self.task, UserCode) and setting in self.model_fields_set:
                raise ValueError(f"`{setting}` does nothing: your function gets all outputs and columns; leave it out")
        return self


class TrainingConfig(LessonConfig, TaskConfig):
    """Who teaches what, and how long."""


def teacher(config: TeacherConfig, job: Job) -> Any:
    """Load the module that is imitated.

    Raises:
        StageError: When it takes other inputs than the student.
    """
    from modelpack.numerics import models

    models.expect_same_inputs(job.steps[config.teacher], job.source)
    return models.load(job.steps[config.teacher], job.device)


def prepare(config: LessonConfig, job: Job, student: Any = None, teaching: Any = None) -> Lesson:
    """Prepare what settings ask for: the teacher, rows, losses and the optimizer's schedule.

    Args:
        config: The settings.
        job: Names the teacher and the rows.
        student: The module that is to learn, in evaluation mode; None for one that will only be asked for its outputs.
        teaching: The module that is imitated, where it is loaded already.

    Raises:
        StageError: When the teacher does not fit the student, or the data lack the truth that the task needs.
    """
    from modelpack.numerics import distillation
    from modelpack.numerics import training as loop

    teaching = teacher(config, job) if teaching is None else teaching
    remarks.invented({config.data, config.eval_data}, job)
    device = loop.device(job.device)
    data = rows(config, job, config.data)
    task = _task(config, job, data, teaching) if isinstance(config, TrainingConfig) else None
    held_out = rows(config, job, config.eval_data) if config.eval_data else None
    if held_out is not None and task is not None:
        held_out = distillation.judged_by_truth(held_out)
    objective = distillation.imitation(teaching, student, data, task, wish=_wish(config, job), device=device)
    for text in objective.remarks():
        job.note(text)
    lesson = loop.Lesson(
        objective,
        data,
        held_out,
        schedule(config),
        device,
        job.seed,
        job.track,
        constraint=loop.zeros_kept(student, job.source) if student is not None else None,
    )
    return remembering(config, job, lesson, job.steps[config.teacher].id)


def rows(config: LessonConfig, job: Job, name: str) -> Rows:
    """Name the rows of a data entry, with the column of the truth where it counts; all columns for the user's task."""
    from modelpack.numerics import training as loop

    read = job.data[name].batches
    if not isinstance(config, TrainingConfig) or config.task == "none":
        return loop.Rows(read, job.inputs, None)
    own = isinstance(config.task, UserCode)
    return loop.Rows(read, job.inputs, None if own else config.target, beside=own)


def _task(config: TrainingConfig, job: Job, data: Rows, teaching: Any) -> Task | None:
    from modelpack.numerics import distillation
    from modelpack.numerics import training as loop

    if config.task == "none":
        return None
    if isinstance(config.task, UserCode):
        return distillation.Own(config.task.load(), config.task.reference)
    found = distillation.task_for(
        data,
        teaching,
        config.task,
        output=config.output,
        smoothing=config.label_smoothing,
        device=loop.device(job.device),
        needed_by=config.asks_for_truth,
    )
    if found is None:
        job.note(f"the data have no truth (column '{config.target}'): the student learns from the teacher alone")
    elif config.task == "auto":
        job.note(f"the truth (column '{config.target}') speaks of the task {found.name}")
    return found


def _wish(config: LessonConfig, job: Job) -> Wish:
    from modelpack.numerics import distillation, masks

    distances = config.distance if isinstance(config.distance, dict) else {distillation.ALL: config.distance}
    asked: object = config
    inner = asked if isinstance(asked, ImitationConfig) else None
    return distillation.Wish(
        weights=inner.weights if inner else {"outputs": 1.0},
        distances={name: distance for name, distance in distances.items() if distance != "auto"},
        temperature=config.temperature,
        alpha=config.alpha if isinstance(config, TrainingConfig) else 1.0,
        features=tuple(inner.features.items()) if inner else (),
        relations=tuple(inner.relations.items()) if inner else (),
        yielding=inner.yielding if inner else (),
        mask=masks.chosen(config.mask, job.inputs),
    )
