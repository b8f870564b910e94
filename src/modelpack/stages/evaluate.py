"""How good the model is: against labels, and against another step's model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from modelpack import canonical
from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, StepRef, stage

MetricName = Literal[
    "accuracy", "top5", "precision", "recall", "f1", "auroc",
    "mse", "mae", "r2", "pearson", "spearman", "spearman_pairs", "similarity",
]  # fmt: skip
CLASSES = frozenset({"accuracy", "top5", "precision", "recall", "f1", "auroc"})


class EvaluateConfig(StageConfig):
    """What to measure, on which data, and compared with what."""

    data: DataRef = Field(description="Data to measure on.")
    metrics: tuple[MetricName, ...] = Field(
        (),
        description="Metrics against labels; precision, recall and f1 are means over classes. `spearman_pairs` needs "
        "no labels: it compares the pairwise similarities of the rows' outputs with those of `against`.",
    )
    target: str = Field("label", min_length=1, description="Key of the labels in the data.")
    output: str = Field("", description="Output that the metrics look at; the first when absent.")
    against: StepRef | None = Field(None, description="Step to compare with, such as `model` or `export`.")
    task: Literal["auto", "classes", "values"] = Field(
        "auto",
        description="Whether rows of the output are scores of classes, so that agreement is the share of equal "
        "answers, or values such as an embedding. `auto` decides by metrics and shape.",
    )

    @model_validator(mode="after")
    def _measures_something(self) -> Self:
        if not self.metrics and self.against is None:
            raise ValueError("there is nothing to measure: give `metrics:`, or a step to compare with as `against:`")
        if "spearman_pairs" in self.metrics and self.against is None:
            raise ValueError("'spearman_pairs' compares two models: name the other one as `against:`")
        return self


def gauges(config: EvaluateConfig) -> set[str]:
    """Name the budget lines that these settings measure."""
    found = {"accuracy"} & set(config.metrics)
    if config.against is None:
        return found
    found |= {"cosine", "sqnr_db"} | ({"accuracy_drop"} if "accuracy" in found else set())
    classes = CLASSES.intersection(config.metrics) or not config.metrics
    if config.task == "classes" or (config.task == "auto" and classes):
        found.add("agreement")
    return found


@stage(
    version=1,
    accepts={Kind.TORCH, Kind.ONNX},
    produces=Kind.REPORT,
    needs=("torch", "torchmetrics", "onnxruntime", "numpy"),
    gauges=gauges,
)
def evaluate(config: EvaluateConfig, job: Job) -> None:
    """Measure the model on data: metrics against labels; agreement, cosine and SQNR against another model."""
    from modelpack.numerics import prediction
    from modelpack.numerics.measure import evaluation

    subject = prediction.predictor(job.source, job.device)
    reference = job.steps[config.against] if config.against is not None else None
    source = job.data[config.data]
    synthetic = config.data in job.synthetic
    if synthetic:
        job.warn(f"the rows of '{config.data}' are invented: these figures say nothing about real data")
    found = evaluation.evaluate(
        subject,
        prediction.predictor(reference, job.device) if reference is not None else None,
        job.batches(config.data),
        evaluation.Plan(config.metrics, config.target, config.output, config.task),
    )
    for name, value in found.metrics.items():
        job.metric(name, value)
    for text in found.warnings:
        job.warn(text)
    job.result("evaluation", {**found.to_json(), "synthetic": synthetic})
    asked = {"model": job.source.id, "against": reference.id if reference is not None else None}
    (job.out / "evaluation.json").write_bytes(
        canonical.encode({**asked, "settings": config, "data": source.digest(), "rows": found.rows})
    )
