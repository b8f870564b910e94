"""The stage that removes channels, or whole blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.artifact import Kind
from modelpack.errors import listed
from modelpack.stage import Assumption, Job, stage
from modelpack.stages import prune_measures as measures
from modelpack.stages import prune_schedule as schedules
from modelpack.stages import remarks
from modelpack.stages.prune_config import JUDGED, PruneConfig
from modelpack.stages.reading import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.numerics.pruning import Pruned, Rounding, Target, Worth
    from modelpack.numerics.pruning.latency import Log
    from modelpack.numerics.pruning.refit import Fit


def _assumed(config: PruneConfig, device: str) -> Iterator[Assumption]:
    """Say on which machine times are taken, where they decide."""
    if config.latency is not None or config.cost == "latency":
        yield measures.assumed(device)


@stage(
    version=6,
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
    from modelpack.numerics import macs, models

    module = models.load(job.source)
    feed = models.example(module, job.inputs, 2, job.seed, job.device)
    module = module.to(job.device)
    remarks.invented({config.data}, job)
    smaller = (_shallower if config.depth is not None or config.drop else _thinner)(config, job, module, feed)
    models.save(smaller, job.out, like=job.source)
    remarks.zeros(job)
    job.metric("macs", macs.count(smaller, feed) / max(1, macs.count(module, feed)))
    before, after = models.parameter_count(module), models.parameter_count(smaller)
    remarks.size(smaller, feed, job)
    job.metric("parameters_kept", after / before)


def _thinner(config: PruneConfig, job: Job, module: Any, feed: Any) -> Any:
    """Take channels out of layers, and report them."""
    from modelpack.numerics import pruning

    target, log = _target(config, job)
    fit = _fit(config, job)

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
            fit=fit,
        )

    if config.schedule is None:
        pruned = cut(module, target)
    else:
        assert config.data is not None, "checked when the recipe was read"
        healing = schedules.Healing(config.data, config.target if config.loss == "task" else None, config.mask)
        pruned = schedules.gradually(config.schedule, healing, job, target=target, whole=module, cut=cut)
    _report(job, pruned)
    if config.refit is None:
        job.result("came_to", {"refit": config.refits})
    if log is not None:
        measures.report(log, pruned.fraction, job)
    return pruned.module


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
    if config.data is not None and (settled := statistics.settle(found.module, module, lambda: rows)).norms:
        remarks.statistics(settled, job)
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


def _fit(config: PruneConfig, job: Job) -> Fit:
    """Give what fits the layers that lose inputs, where that is asked for."""
    from modelpack.numerics.pruning import refit

    if not config.refits:
        return refit.nothing
    assert config.data is not None, "checked when the recipe was read"
    rows = reading(config.data, config.mask, config.rows, job)
    return refit.by_least_squares(rows, lambda layers: job.track(layers, len(layers), "refit"))


def _report(job: Job, pruned: Pruned) -> None:
    from modelpack.numerics.pruning import reasons

    job.result("layers", pruned.layers)
    job.result("left_alone", dict(pruned.left))
    job.result("rounding", dict(pruned.rounding))
    if pruned.refitted:
        job.result("refitted", list(pruned.refitted))
        job.note(f"fitted to what they gave with all their inputs: {listed(pruned.refitted, 6)}")
    if pruned.unfitted:
        job.result("unfitted", dict(pruned.unfitted))
    for reason, layers in reasons(pruned.unfitted).items():
        job.note(f"not fitted: {listed(layers, 6)} ({reason})")
    if pruned.heads[1]:
        job.note(f"removed {pruned.heads[0]} of {pruned.heads[1]} attention heads")
    for reason, layers in reasons(pruned.left).items():
        job.note(f"left alone: {listed(layers, 6)} ({reason})")
