"""The stage that trains a student from its teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.stage import Job, stage
from modelpack.stages import remarks
from modelpack.stages.training import TrainingConfig, training


class DistillConfig(TrainingConfig):
    """Who teaches what, and how long."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward pass; auto: bfloat16 or float16 on CUDA, float32 elsewhere."
    )


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
    from modelpack.numerics import models
    from modelpack.numerics import training as loop

    lesson = training(config, job, config.precision)
    student = models.load(job.source, job.device)
    trained = loop.train(student, lesson, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.training(trained, lesson, job)
