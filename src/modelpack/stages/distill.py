"""The stage that trains a student from its teacher."""

from __future__ import annotations

from modelpack.artifact import Kind
from modelpack.stage import Job, stage
from modelpack.stages import remarks
from modelpack.stages.schedule_config import FloatScheduleConfig
from modelpack.stages.training import TrainingConfig, training


class DistillConfig(TrainingConfig, FloatScheduleConfig):
    """Who teaches what, and how long."""


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch",),
    pays=("unrecovered",),
    refuses={"quantized"},
)
def distill(config: DistillConfig, job: Job) -> None:
    """Train the model to give what its teacher gives, and the truth where the data have it."""
    from modelpack.numerics import models, zeros
    from modelpack.numerics import training as loop

    lesson = training(config, job)
    student = models.load(job.source, job.device)
    zeros.hold(student, job.source)
    trained = loop.train(student, lesson, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.zeros(job)
    remarks.training(trained, lesson, job)
