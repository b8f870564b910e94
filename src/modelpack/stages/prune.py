"""The stage that removes channels."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, stage


class PruneConfig(StageConfig):
    """How much to remove, and how to choose it."""

    macs: float = Field(0.7, gt=0, le=1, description="Fraction of multiply-accumulates to keep; met within 2 %.")
    importance: Literal["l2", "bn_scale", "taylor"] = Field(
        "l2",
        description="What makes a channel worth keeping: its weights (l2), its batch-norm scales, or what the loss "
        "would lose without it (taylor, which reads data).",
    )
    data: DataRef | None = Field(None, description="Rows for importance taylor.")
    loss: Literal["outputs", "task"] = Field(
        "outputs",
        description="What importance taylor judges: the change of the outputs, or of the loss against the truth, "
        "whose slopes say little about a model that fits its data well.",
    )
    target: str = Field("label", description="Column of the truth, for loss task.")
    rows: int = Field(512, gt=0, description="Rows that importance taylor reads.")
    keep: tuple[str, ...] = Field((), description="Glob patterns of module paths that must not change.")
    round_to: int = Field(1, gt=0, description="Channels that stay in a layer are a multiple of this.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.importance == "taylor" and self.data is None:
            raise ValueError("importance taylor needs data: name an entry of `data:`")
        return self


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch", "torch-pruning"),
    owes=("unrecovered",),
    refuses={"quantized"},
    gauges=lambda _config: ("macs",),
)
def prune(config: PruneConfig, job: Job) -> None:
    """Remove whole channels, hidden units and attention heads, least important first."""
    from modelpack.numerics import models, pruning

    module = models.load(job.source)
    feed = models.example(module, job.inputs, 2, job.seed, job.device)
    module = module.to(job.device)
    pruned = pruning.prune(
        module,
        feed,
        keep_macs=config.macs,
        method=config.importance,
        taylor=_taylor(config, job) if config.importance == "taylor" else None,
        keep=config.keep,
        round_to=config.round_to,
        seed=job.seed,
        watch=lambda groups: job.track(groups, label="groups of layers"),
    )
    models.save(pruned.module, job.out, like=job.source)
    _report(job, models.parameter_count(module), models.parameter_count(pruned.module), pruned)


def _taylor(config: PruneConfig, job: Job) -> Any:
    from modelpack.numerics.pruning import taylor_from
    from modelpack.numerics.training.batches import Rows

    assert config.data is not None, "checked when the recipe was read"
    source = job.data[config.data]
    data = Rows(
        lambda: job.track(source.batches(), label="rows for importance"),
        job.inputs,
        config.target if config.loss == "task" else None,
    )
    if job.synthetic & {config.data}:
        job.warn(f"importance was measured on invented rows ('{config.data}')")
    taylor, judged = taylor_from(data, config.rows, job.device, job.seed)
    job.note(f"importance taylor judges {judged}")
    return taylor


def _report(job: Job, before: int, after: int, pruned: Any) -> None:
    job.metric("macs", pruned.macs)
    job.metric("parameters", after)
    job.metric("parameters_kept", after / before)
    job.result("layers", pruned.layers)
    job.result("left_alone", dict(pruned.left))
    if pruned.heads[1]:
        job.note(f"removed {pruned.heads[0]} of {pruned.heads[1]} attention heads")
    for reason, layers in pruned.by_reason().items():
        job.note(f"left alone: {', '.join(layers)} ({reason})")
