"""The stage that trains a model to be quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, TorchRef, stage
from modelpack.stages import remarks

if TYPE_CHECKING:
    from modelpack.numerics.fake_quantization.twin import Quantized
    from modelpack.numerics.qat import Prepared

_FREEZE_AFTER = 0.5


class QatConfig(StageConfig):
    """Who teaches what, how long, and how the grids of integers are found."""

    teacher: TorchRef = Field("model", description="The step whose float model is imitated; 'model' is the original.")
    data: DataRef = Field(description="Rows to learn from.")
    eval_data: DataRef | None = Field(None, description="Rows that judge each epoch; the best epoch is kept.")
    target: str = Field("label", description="Column of the truth, where the data have one and `task` uses it.")
    output: str = Field("", description="Output that the truth is about; the first one when empty.")
    task: Literal["auto", "cross_entropy", "mse", "none"] = Field(
        "none", description="Loss against the truth; none: the teacher alone; auto: by the type of the truth."
    )
    temperature: float = Field(4.0, gt=0, description="Softens class probabilities before they are compared.")
    alpha: float = Field(0.7, ge=0, le=1, description="Weight of the teacher; the truth has 1 - alpha.")
    epochs: int = Field(3, gt=0, description="Passes over the data.")
    lr: float = Field(1e-4, gt=0, description="Highest learning rate of AdamW.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps in which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of matrices.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 for no limit.")
    observe: int = Field(256, gt=0, description="How many rows show the ranges of activations, at most.")
    ranges: Literal["minmax", "percentile"] = Field(
        "minmax", description="Whether the range of an activation holds all values, or nearly all."
    )
    percentile: float = Field(
        99.99, gt=50, lt=100, description="With `ranges: percentile`, the share of values inside the range."
    )
    learn: bool = Field(True, description="Learn the scales with the weights; else they follow the ranges.")
    freeze_after: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Without `learn`, the fraction of the steps after which ranges stand; 0.5 if absent.",
    )
    exclude: tuple[str, ...] = Field((), description="Names of layers to leave float; * and ? match anything.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.task == "none" and self.alpha == 0:
            raise ValueError("with task none and alpha 0 there is nothing to learn")
        if self.learn and self.freeze_after is not None:
            raise ValueError("`freeze_after` stops ranges that are followed: set `learn: false`, or leave it out")
        return self


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch", "onnx", "onnxscript", "onnxruntime"),
    marks={"quantized"},
    refuses={"quantized"},
)
def qat(config: QatConfig, job: Job) -> None:
    """Train the model with its weights and activations rounded to 8 bits, so that its export loses little."""
    from modelpack.numerics import distillation, models, rows
    from modelpack.numerics import qat as training

    models.expect_same_inputs(job.steps[config.teacher], job.source)
    teacher = models.load(job.steps[config.teacher], job.device)
    source = job.data[config.data]
    target = None if config.task == "none" else config.target
    data = distillation.Rows(source.batches, job.inputs, target)
    held_out = job.data[config.eval_data] if config.eval_data else None
    goal = distillation.goal(
        data, config.task, output=config.output, temperature=config.temperature, alpha=config.alpha
    )
    remarks.invented({config.data, config.eval_data}, job)
    prepared = training.prepare(
        models.load(job.source),
        job.inputs,
        job.source.read_json("signature.json")["outputs"],
        exclude=config.exclude,
        feed=rows.examples(source.batches(), job.inputs, 4, job.seed)[0],
        seed=job.seed,
    )
    _report(prepared, job)
    student = _student(prepared, config, job, data.steps)
    lesson = distillation.Lesson(
        teacher,
        data,
        distillation.Rows(held_out.batches, job.inputs, target) if held_out else None,
        goal,
        distillation.Schedule(config.epochs, config.lr, config.warmup, config.weight_decay, config.clip, "float32"),
        distillation.device(job.device),
        job.seed,
        job.track,
    )
    trained = distillation.train(student, lesson, job.scratch)
    training.finish(prepared, student).write(job.out)
    models.save(prepared.module, job.out, like=job.source)
    remarks.training(trained, lesson, job)


def _student(prepared: Prepared, config: QatConfig, job: Job, steps: int) -> Quantized:
    """Look how large activations become, and round them and the weights; `steps` are those of one epoch."""
    from modelpack.numerics import distillation, rows
    from modelpack.numerics import qat as training

    device = distillation.device(job.device)
    feeds = rows.feeds(job.data[config.data].batches(), job.inputs, config.observe)
    share = config.percentile if config.ranges == "percentile" else 100.0
    observed = training.observe(prepared, job.track(feeds, label="observe ranges"), share, device)
    after = config.freeze_after if config.freeze_after is not None else _FREEZE_AFTER
    return training.learning(prepared, observed, None if config.learn else round(after * config.epochs * steps), device)


def _report(prepared: Prepared, job: Job) -> None:
    """Say what was folded, and which layers stay float."""
    if prepared.folded:
        job.note(f"folded {len(prepared.folded)} batch norms into the layers before them")
    if prepared.found.lost:
        job.warn(f"operators between layers stay float: torch has no value like {', '.join(prepared.found.lost)}")
    if prepared.found.adrift:
        job.note(
            f"{len(prepared.found.adrift)} biases end between the steps of their layers' products, such as that of "
            f"{prepared.found.adrift[0]}: they are no parameters, or serve several inputs"
        )
    remarks.layers(prepared.found.layers, job)
