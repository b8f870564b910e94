"""The stage that heals a pruned model without labels."""

from __future__ import annotations

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, TorchRef, stage
from modelpack.stages import remarks


class RecoverConfig(StageConfig):
    """What the model is healed with."""

    teacher: TorchRef = Field("model", description="The step whose outputs are restored; 'model' is the original.")
    data: DataRef = Field(description="Rows without labels, like those the model will see.")
    eval_data: DataRef | None = Field(None, description="Rows that judge each epoch; the best epoch is kept.")
    batch_norm: bool = Field(True, description="First measure the statistics of batch norms anew.")
    epochs: int = Field(2, ge=0, description="Passes of self-distillation over the data; 0 for none.")
    lr: float = Field(5e-4, gt=0, description="Highest learning rate of AdamW.")


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch",),
    pays=("unrecovered",),
    refuses={"quantized"},
)
def recover(config: RecoverConfig, job: Job) -> None:
    """Restore a pruned model from unlabelled data: batch-norm statistics, then the original model's outputs."""
    from modelpack.numerics import distillation, models

    models.expect_same_inputs(job.steps[config.teacher], job.source)
    teacher = models.load(job.steps[config.teacher], job.device)
    student = models.load(job.source, job.device)
    held_out = job.data[config.eval_data] if config.eval_data else None
    remarks.invented({config.data, config.eval_data}, job)
    lesson = distillation.Lesson(
        teacher,
        distillation.Rows(job.data[config.data].batches, job.inputs, None),
        distillation.Rows(held_out.batches, job.inputs, None) if held_out else None,
        distillation.Goal("none"),
        distillation.Schedule(config.epochs, config.lr),
        distillation.device(job.device),
        job.seed,
        job.track,
    )
    if config.batch_norm:
        count = distillation.reestimate(student, lesson)
        job.note(f"measured the statistics of {count} batch norms anew" if count else "the model has no batch norms")
    trained = distillation.train(student, lesson, job.scratch)
    models.save(student, job.out, like=job.source)
    remarks.training(trained, lesson, job)
