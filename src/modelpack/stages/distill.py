"""The stage that trains a student from its teacher."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, TorchRef, stage
from modelpack.stages import remarks


class DistillConfig(StageConfig):
    """Who teaches what, and how long."""

    teacher: TorchRef = Field("model", description="The step whose model is imitated; 'model' is the original.")
    data: DataRef = Field(description="Rows to learn from.")
    eval_data: DataRef | None = Field(None, description="Rows that judge each epoch; the best epoch is kept.")
    target: str = Field("label", description="Column of the truth, where the data have one.")
    output: str = Field("", description="Output that the truth is about; the first one when empty.")
    task: Literal["auto", "cross_entropy", "mse", "none"] = Field(
        "auto", description="Loss against the truth; auto: cross_entropy for integers, mse for floats, else none."
    )
    temperature: float = Field(4.0, gt=0, description="Softens class probabilities before they are compared.")
    alpha: float = Field(0.7, ge=0, le=1, description="Weight of the teacher; the truth has 1 - alpha.")
    epochs: int = Field(3, gt=0, description="Passes over the data.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of AdamW.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps in which the rate rises.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of matrices.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 for no limit.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward pass; auto: bfloat16 or float16 on CUDA, float32 elsewhere."
    )

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.task == "none" and self.alpha == 0:
            raise ValueError("with task none and alpha 0 there is nothing to learn")
        return self


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
    from modelpack.numerics import distillation, models

    models.expect_same_inputs(job.steps[config.teacher], job.source)
    teacher = models.load(job.steps[config.teacher], job.device)
    student = models.load(job.source, job.device)
    target = None if config.task == "none" else config.target
    data = distillation.Rows(job.data[config.data].batches, job.inputs, target)
    held_out = job.data[config.eval_data] if config.eval_data else None
    goal = distillation.goal(
        data, config.task, output=config.output, temperature=config.temperature, alpha=config.alpha
    )
    if goal.task == "none":
        job.note(f"no truth is used (column '{config.target}'): the student learns from the teacher alone")
    remarks.invented({config.data, config.eval_data}, job)
    lesson = distillation.Lesson(
        teacher,
        data,
        distillation.Rows(held_out.batches, job.inputs, target) if held_out else None,
        goal,
        distillation.Schedule(
            config.epochs, config.lr, config.warmup, config.weight_decay, config.clip, config.precision
        ),
        distillation.device(job.device),
        job.seed,
        job.track,
    )
    trained = distillation.train(student, lesson, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.training(trained, lesson, job)
