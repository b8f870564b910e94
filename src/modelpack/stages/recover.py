"""The stage that heals a pruned model without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, TorchRef, stage
from modelpack.stages import batch_norms, remarks
from modelpack.stages.batch_norms import BatchNormsConfig
from modelpack.stages.imitation_config import AspectName, ImitationConfig, Weights
from modelpack.stages.schedule_config import FloatScheduleConfig
from modelpack.stages.training import LessonConfig, prepare, rows, teacher


class RecoverConfig(FloatScheduleConfig, LessonConfig, ImitationConfig, BatchNormsConfig):
    """What the model is healed with."""

    teacher: TorchRef = Field("model", description="The step whose outputs are restored; 'model' is the original.")
    imitate: Weights | None = Field(
        None,
        description="What of the teacher is restored, as for distill; if absent, outputs, and with a weight of 3 the "
        "features of blocks that pair up by themselves, unless `compile` hides these.",
    )
    data: DataRef = Field(description="Rows without labels, like those the model will see.")
    epochs: int = Field(2, ge=0, description="Passes of self-distillation over the data; 0 for none.")
    lr: float = Field(5e-4, gt=0, description="Highest learning rate.")

    @property
    def weights(self) -> dict[AspectName, float]:
        """What is restored, with its weight."""
        if self.imitate is None and self.epochs and not self.compile:
            return {"outputs": 1.0, "features": 3.0}
        return super().weights

    @model_validator(mode="after")
    def _heals(self) -> Self:
        if self.batch_norm is False and not self.epochs:
            raise ValueError("`batch_norm: false` and `epochs: 0` heal nothing: leave one of them out, or the step")
        return self


@stage(
    version=5,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch",),
    trains=lambda _config: True,
    pays=("unrecovered",),
    refuses={"quantized"},
)
def recover(config: RecoverConfig, job: Job) -> None:
    """Restore a pruned model from unlabelled data: batch-norm statistics, then the original model's outputs."""
    from modelpack.numerics import distillation, models
    from modelpack.numerics import training as loop

    student = models.load(job.source, job.device)
    teaching, device = teacher(config, job), loop.device(job.device)
    data = rows(config, job, config.data)
    distillation.expect_same_outputs(student, teaching, data, device)
    batch_norms.expect(config, student, job)
    settled = batch_norms.settle(config, job, student, teaching, data)
    remarks.statistics(settled, job)
    if config.batch_norm == "auto":
        job.result("came_to", {"batch_norm": settled.word})
    healing = replace(prepare(config, job, student, teaching), still=settled.still)
    trained = loop.train(student, healing, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.zeros(job)
    remarks.training(trained, healing, job)
