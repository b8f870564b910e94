"""The stage that trains a student from its teacher."""

from __future__ import annotations

from dataclasses import replace

from modelpack.artifact import Kind
from modelpack.stage import Job, stage
from modelpack.stages import remarks, students
from modelpack.stages.imitation_config import ImitationConfig
from modelpack.stages.schedule_config import FloatScheduleConfig
from modelpack.stages.students import StudentConfig
from modelpack.stages.training import TrainingConfig, prepare


class DistillConfig(FloatScheduleConfig, TrainingConfig, ImitationConfig, StudentConfig):
    """Who teaches whom what, and how long."""


@stage(
    version=4,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch",),
    trains=lambda _config: True,
    pays=("unrecovered",),
    refuses={"quantized"},
    gauges=lambda config: ("macs",) if config.shrinks else (),
)
def distill(config: DistillConfig, job: Job) -> None:
    """Train a student to give what its teacher gives, and the truth where the data have it."""
    from modelpack.numerics import training as loop

    student = students.begin(config, job)
    lesson = prepare(config, job, student)
    if config.student is not None:
        lesson = replace(lesson, constraint=None)  # zeros of the model that is read are none of its own
    trained = loop.train(student, lesson, job.scratch)
    students.end(config, job, student)
    if config.student is None:
        remarks.zeros(job)
    remarks.training(trained, lesson, job)
