"""The stage that heals a pruned model without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, TorchRef, stage
from modelpack.stages import remarks
from modelpack.stages.imitation_config import AspectName, ImitationConfig, Weights
from modelpack.stages.schedule_config import FloatScheduleConfig
from modelpack.stages.training import LessonConfig, prepare, rows, teacher


class RecoverConfig(FloatScheduleConfig, LessonConfig, ImitationConfig):
    """What the model is healed with."""

    teacher: TorchRef = Field("model", description="The step whose outputs are restored; 'model' is the original.")
    imitate: Weights | None = Field(
        None,
        description="What of the teacher is restored, as for distill; if absent, outputs, and with a weight of 3 the "
        "features of blocks that pair up by themselves, unless `compile` hides these.",
    )
    data: DataRef = Field(description="Rows without labels, like those the model will see.")
    batch_norm: Literal["auto"] | bool = Field(
        "auto",
        description="First measure the statistics of batch norms anew. If false they stay as they are, in training "
        "too; auto does what brings the outputs closer to the teacher's: few rows, or unlike those that the model was "
        "trained on, give bad statistics.",
    )
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
    version=4,
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
    anew = None if config.batch_norm == "auto" else config.batch_norm
    data = rows(config, job, config.data)
    distillation.expect_same_outputs(student, teaching, data, device)
    settled = loop.settle(student, teaching, loop.reader(data, device, job.track), anew=anew)
    if config.batch_norm is True and not settled.norms:
        job.warn("`batch_norm: true` does nothing: the model has no batch norms")
    job.note(settled.told)
    healing = replace(prepare(config, job, student, teaching), still=settled.still)
    trained = loop.train(student, healing, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.zeros(job)
    remarks.training(trained, healing, job)
