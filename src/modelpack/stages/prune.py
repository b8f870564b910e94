"""The stage that removes channels, or whole blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.errors import listed
from modelpack.stage import Assumption, DataRef, Job, StageConfig, stage
from modelpack.stages import prune_measures as measures
from modelpack.stages import prune_schedule as schedules
from modelpack.stages import remarks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.numerics.pruning import Pruned, Rounding, Target, Worth
    from modelpack.numerics.pruning.latency import Log

TARGETS = ("macs", "params", "size", "latency")
"""Settings of which one says how small the model shall be."""

JUDGED = ("taylor", "fisher")
"""Importances that read data."""

CHANNELS = ("importance", "scope", "loss", "target", "round_to", "sensitivity")
"""Settings that say nothing about whole blocks."""

Share = Annotated[float, Field(gt=0, le=1)]


class PruneConfig(StageConfig):
    """How much to remove, and how to choose it."""

    macs: Share | None = Field(None, description="Fraction of multiply-accumulates to keep; met within 2 %.")
    params: Share | None = Field(None, description="Fraction of parameters to keep; met within 2 %.")
    size: Share | None = Field(None, description="Fraction of the weights' bytes to keep; met within 2 %.")
    latency: Share | None = Field(
        None,
        description="Fraction to keep of the time that the model takes in onnxruntime, one row on one thread of this "
        "machine, on the first row of `data` where it is named; met within 5 %, by exports that are measured.",
    )
    depth: Share | None = Field(
        None,
        description="Fraction of the layers or blocks to keep, of those that the model can do without; the others go "
        "whole, those first whose absence changes the outputs least for what it saves.",
    )
    cost: Literal["macs", "latency"] = Field(
        "macs",
        description="What leaving a layer or block out saves, for depth: multiply-accumulates, or time in onnxruntime "
        "on this machine, measured once.",
    )
    drop: tuple[str, ...] = Field((), description="Glob patterns of layers or blocks that go, whatever they do.")
    importance: Literal["l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "fisher", "random"] = Field(
        "l2",
        description="What makes a channel worth keeping. By its weights: their size (l1, l2), the same against all "
        "that are no smaller (lamp), their distance from the others' (fpgm), batch-norm scales (bn_scale). By what "
        "the loss would lose, which reads data: taylor (first order), fisher (second order). random: a control.",
    )
    scope: Literal["global", "layer", "isomorphic"] = Field(
        "global",
        description="Where the least important are looked for: among all; in each group of layers, so that every one "
        "loses the same share; or among groups of the same structure.",
    )
    data: DataRef | None = Field(None, description="Rows for importance taylor and fisher, and for depth.")
    loss: Literal["outputs", "task"] = Field(
        "outputs",
        description="What importance taylor and fisher judge: the change of the outputs, or of the loss against the "
        "truth, whose slopes say little about a model that fits its data well.",
    )
    target: str = Field("label", description="Column of the truth, for loss task.")
    rows: int = Field(512, gt=0, description="Rows that importance taylor and fisher, or depth, read.")
    keep: tuple[str, ...] = Field((), description="Glob patterns of module paths that must not change.")
    round_to: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Channels that stay in a layer are a multiple of this; auto: of 16, the block that kernels compute "
        "at once, or of a half, a quarter, … of it where the target cannot be met otherwise, in narrow layers first.",
    )
    sensitivity: int = Field(
        0,
        ge=0,
        description="Rows of `data` on which each group of layers is measured alone with 10 to 75 % of its channels "
        "gone: accuracy where they have classes under `target`, else closeness of the outputs; 0: not measured.",
    )

    schedule: schedules.GradualConfig | None = Field(
        None,
        description="Prune in several steps, and heal the model after each on `data`: by the unpruned model's outputs, "
        "and by the truth too with `loss: task`.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        whole = "depth" if self.depth is not None else "drop" if self.drop else ""
        if len(given) + bool(whole) != 1:
            told = f"not {' and '.join([*given, *([whole] if whole else [])])}" if given else "such as `macs: 0.5`"
            raise ValueError(f"say how much to keep by one of {', '.join(TARGETS)}, depth, {told}")
        stray = [name for name in CHANNELS if whole and name in self.model_fields_set]
        if stray:
            raise ValueError(f"{stray[0]} is about channels: a step with depth or drop removes whole blocks")
        reader = f"importance {self.importance}" if self.importance in JUDGED else "sensitivity"
        if (self.importance in JUDGED or self.sensitivity) and self.data is None:
            raise ValueError(f"{reader} needs data: name an entry of `data:`")
        return self

    @model_validator(mode="after")
    def _used(self) -> Self:
        judged, whole = self.importance in JUDGED, self.depth is not None or bool(self.drop)
        users = {
            "data": judged or whole or self.sensitivity or self.schedule or self.latency,
            "rows": judged or whole,
            "loss": judged or self.schedule,
        }
        for name, used in users.items():
            if name in self.model_fields_set and getattr(self, name) is not None and not used:
                raise ValueError(f"`{name}` does nothing with importance {self.importance}: take taylor or fisher")
        if "target" in self.model_fields_set and self.loss != "task" and not self.sensitivity:
            raise ValueError("`target` does nothing without loss task, or sensitivity")
        if "cost" in self.model_fields_set and self.depth is None:
            raise ValueError("`cost` is that of layers or blocks: it does nothing without depth")
        return self

    @model_validator(mode="after")
    def _heals(self) -> Self:
        if self.schedule is None:
            return self
        if self.data is None:
            raise ValueError("schedule needs data to heal the model on: name an entry of `data:`")
        for name in ("depth", "drop"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} leaves blocks out at once: put it in a step of its own before the one with `schedule`"
                )
        if self.sensitivity:
            raise ValueError("sensitivity is that of the unpruned model: measure it in a step without `schedule`")
        return self


def _assumed(config: PruneConfig, device: str) -> Iterator[Assumption]:
    """Say on which machine times are taken, where they decide."""
    if config.latency is not None or config.cost == "latency":
        yield measures.assumed(device)


@stage(
    version=3,
    accepts={Kind.TORCH},
    produces=Kind.TORCH,
    needs=("torch", "torch-pruning"),
    trains=lambda config: config.schedule is not None,
    owes=("unrecovered",),
    settles=lambda config: ("unrecovered",) if config.schedule is not None else (),
    refuses={"quantized"},
    gauges=lambda _config: ("macs",),
    assumes=_assumed,
)
def prune(config: PruneConfig, job: Job) -> None:
    """Remove whole channels, hidden units and attention heads, or layers and blocks, least important first."""
    from modelpack.numerics import macs, models, pruning

    module = models.load(job.source)
    feed = models.example(module, job.inputs, 2, job.seed, job.device)
    module = module.to(job.device)
    if config.importance in JUDGED or config.sensitivity or config.schedule or config.depth or config.drop:
        remarks.invented({config.data}, job)
    if config.depth is not None or config.drop:
        smaller = _shallower(config, job, module, feed)
    else:
        target, log = _target(config, job)

        def cut(part: Any, goal: Target) -> Pruned:
            return pruning.prune(
                part,
                feed,
                goal,
                _worth(config, job),
                keep=config.keep,
                rounding=_rounding(config),
                seed=job.seed,
                study=measures.study(config.sensitivity, config.data, config.target, job),
            )

        if config.schedule is None:
            pruned = cut(module, target)
        else:
            assert config.data is not None, "checked when the recipe was read"
            healing = schedules.Healing(config.data, config.target if config.loss == "task" else None)
            pruned = schedules.gradually(config.schedule, healing, job, target=target, whole=module, cut=cut)
        smaller = pruned.module
        _report(job, pruned)
        if log is not None:
            measures.report(log, pruned.fraction, job)
    models.save(smaller, job.out, like=job.source)
    remarks.zeros(job)
    job.metric("macs", macs.count(smaller, feed) / max(1, macs.count(module, feed)))
    before, after = models.parameter_count(module), models.parameter_count(smaller)
    remarks.size(smaller, feed, job)
    job.metric("parameters_kept", after / before)


def _shallower(config: PruneConfig, job: Job, module: Any, feed: Any) -> Any:
    """Leave whole blocks out, and report them."""
    from modelpack.numerics import models
    from modelpack.numerics.pruning import depth, kept
    from modelpack.numerics.rows import feeds
    from modelpack.numerics.training import statistics

    kept(module, config.keep)
    if config.data is None:
        rows = [feed]
        if config.depth is not None:
            job.warn("the importance of blocks was measured on made-up rows: name real ones by data")
    else:
        batches = job.track(job.data[config.data].batches(), label="rows for importance")
        rows = [models.tensors(batch, job.device) for batch in feeds(batches, job.inputs, config.rows)]
    found = depth.shallower(
        module,
        feed,
        rows,
        share=1.0 if config.depth is None else config.depth,
        drop=config.drop,
        keep=config.keep,
        costs=measures.block_times(config.data, job) if config.cost == "latency" else depth.by_work,
        watch=lambda steps: job.track(steps, len(steps), "blocks to leave out"),
    )
    if config.data is not None and (count := statistics.reestimate_all(found.module, rows)):
        job.note(f"measured the statistics of {count} batch norms anew")
    job.result("blocks", found.table)
    job.result("left_alone", dict(found.left))
    total = len(found.table)
    job.note(
        f"left {len(found.gone)} of {total} blocks out: {', '.join(found.gone)}" if found.gone else "no block went"
    )
    for path, reason in found.left.items():
        job.note(f"left alone: {path} ({reason})")
    return found.module


def _target(config: PruneConfig, job: Job) -> tuple[Target, Log | None]:
    """Say what shall become smaller; for a time, with a log of what is measured on the way to it."""
    from modelpack.numerics.pruning import targets

    if config.latency is not None:
        return measures.latency(config.latency, config.data, job)
    kinds = targets.KINDS.items()
    return next(make(keep) for name, make in kinds if (keep := getattr(config, name)) is not None), None


def _rounding(config: PruneConfig) -> Rounding:
    from modelpack.numerics.pruning import Rounding, rounding

    return Rounding(rounding.BLOCK, adapts=True) if config.round_to == "auto" else Rounding(config.round_to)


def _worth(config: PruneConfig, job: Job) -> Worth:
    from modelpack.numerics.pruning import Worth, evidence
    from modelpack.numerics.training.batches import Rows

    if config.importance not in JUDGED:
        return Worth(config.importance, config.scope, seed=job.seed)
    assert config.data is not None, "checked when the recipe was read"
    source = job.data[config.data]
    data = Rows(
        lambda: job.track(source.batches(), label="rows for importance"),
        job.inputs,
        config.target if config.loss == "task" else None,
    )
    found, judged = evidence.gather(data, config.rows, job.device, job.seed)
    job.note(f"importance {config.importance} judges {judged}")
    return Worth(config.importance, config.scope, found, job.seed)


def _report(job: Job, pruned: Pruned) -> None:
    from modelpack.numerics.pruning import reasons

    job.result("layers", pruned.layers)
    job.result("left_alone", dict(pruned.left))
    job.result("rounding", dict(pruned.rounding))
    if pruned.heads[1]:
        job.note(f"removed {pruned.heads[0]} of {pruned.heads[1]} attention heads")
    for reason, layers in reasons(pruned.left).items():
        job.note(f"left alone: {listed(layers, 6)} ({reason})")
