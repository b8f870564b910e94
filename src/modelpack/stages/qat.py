"""The stage that trains a model to be quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import Job, TorchRef, stage
from modelpack.stages import remarks
from modelpack.stages.training import TaskSetting, TrainingConfig, prepare

if TYPE_CHECKING:
    from modelpack.numerics.fake_quantization.twin import Quantized
    from modelpack.numerics.qat import Prepared
    from modelpack.numerics.training import Lesson

_FREEZE_AFTER = 0.5


class QatConfig(TrainingConfig):
    """Who teaches what, how long, and how the grids of integers are found."""

    teacher: TorchRef = Field("model", description="The step whose float model is imitated; 'model' is the original.")
    target: str = Field("label", description="Column of the truth, where the data have one and `task` uses it.")
    task: TaskSetting = Field("none", description="Loss against the truth, as for distill; none: the teacher alone.")
    lr: float = Field(1e-4, gt=0, description="Highest learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of matrices.")
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
        if self.learn and self.freeze_after is not None:
            raise ValueError("`freeze_after` stops ranges that are followed: set `learn: false`, or leave it out")
        if "percentile" in self.model_fields_set and self.ranges != "percentile":
            raise ValueError("`percentile` belongs to `ranges: percentile`: write that, or leave it out")
        if self.learn and self.parallel == "fsdp":
            raise ValueError("`parallel: fsdp` deals out no scales: set `learn: false`, or take `parallel: ddp`")
        return self


@stage(
    version=4,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch", "onnx", "onnxscript", "onnxruntime"),
    trains=lambda _config: True,
    marks={"quantized"},
    refuses={"quantized"},
)
def qat(config: QatConfig, job: Job) -> None:
    """Train the model with its weights and activations rounded to 8 bits, so that its export loses little."""
    from modelpack.numerics import models, rows
    from modelpack.numerics import qat as rounding
    from modelpack.numerics import training as loop

    lesson = prepare(config, job)
    prepared = rounding.prepare(
        models.load(job.source),
        job.inputs,
        job.source.read_json("signature.json")["outputs"],
        exclude=config.exclude,
        feed=rows.examples(job.data[config.data].batches(), job.inputs, 4, job.seed)[0],
        seed=job.seed,
    )
    _report(prepared, job)
    student = _student(prepared, config, job, lesson)
    kept = loop.zeros_kept(student, job.source, "floating.")
    trained = loop.train(student, replace(lesson, constraint=kept), job.scratch)
    rounding.finish(prepared, student).write(job.out)
    models.save(prepared.module, job.out, like=job.source)
    remarks.zeros(job)
    remarks.training(trained, lesson, job)


def _student(prepared: Prepared, config: QatConfig, job: Job, lesson: Lesson) -> Quantized:
    """Look how large activations become, and round them and the weights."""
    from modelpack.numerics import qat as rounding
    from modelpack.numerics import rows

    feeds = rows.feeds(job.data[config.data].batches(), job.inputs, config.observe)
    share = config.percentile if config.ranges == "percentile" else 100.0
    observed = rounding.observe(prepared, job.track(feeds, label="observe ranges"), share, lesson.device)
    after = config.freeze_after if config.freeze_after is not None else _FREEZE_AFTER
    steps = None if config.learn else round(after * config.epochs * lesson.data.steps)
    return rounding.learning(prepared, observed, steps, lesson.device)


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
