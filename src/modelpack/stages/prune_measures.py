"""What `prune` measures on its way: the time that a model takes, and what each group of layers bears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.device import machine
from modelpack.stage import Assumption

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelpack.numerics.pruning import Target
    from modelpack.numerics.pruning.choice import Ranking
    from modelpack.numerics.pruning.latency import Log
    from modelpack.numerics.pruning.stopwatch import Exports
    from modelpack.stage import Job

_TOLD = 3
"""Groups that are named as the most sensitive ones."""

_NAMES = {"accuracy": "accuracy", "sqnr_db": "signal to noise of the outputs"}


def assumed(device: str) -> Assumption:
    """Say on which machine times are taken."""
    found = machine(device)
    processor, versions = found["processor"], found["versions"]
    known = [f"{name} {version}" for name, version in versions.items() if version != "absent"]
    told = [processor["name"], *processor["flags"], f"{found['cores']} cores", device, *known]
    return Assumption("machine", ", ".join(map(str, told)), "the target is a fraction of the time measured on it")


def latency(keep: float, data: str | None, job: Job) -> tuple[Target, Log]:
    """Aim at a fraction of the time that the unpruned model takes, on a row of the data where there are any.

    Raises:
        StageError: When the data do not fit the model.
    """
    from modelpack.numerics.pruning import latency as timed

    return timed.of_latency(keep, _watch(data, job), job.note)


def block_times(data: str | None, job: Job) -> Callable[[Any, Any, Sequence[str]], dict[str, float]]:
    """Give what says which fraction of a model's time in onnxruntime each of some blocks takes."""

    def measured(module: Any, _feed: Any, paths: Sequence[str]) -> dict[str, float]:
        from modelpack.numerics.pruning import cost

        return cost.of_modules(_watch(data, job).times(module), paths)

    return measured


def _watch(data: str | None, job: Job) -> Exports:
    from modelpack.numerics import prediction, rows
    from modelpack.numerics.pruning.stopwatch import Exports

    inputs, _ = prediction.signature(job.source)
    feed = rows.sample(inputs, 1, job.seed) if data is None else next(rows.feeds(job.data[data].batches(), inputs, 1))
    outputs = job.source.read_json("signature.json")["outputs"]
    return Exports(inputs, outputs, feed, job.device, job.seed)


def report(log: Log, measured: float, job: Job) -> None:
    """Record how a latency was met: which fraction of the unpruned model's time it takes."""
    job.metric("latency_fraction", measured)
    job.result("latency", {**log.to_json(), "measured": measured})
    job.note(
        f"takes {measured:.1%} of the unpruned model's time on this machine "
        f"(found with {log.exports} exports in {log.seconds:.0f} s)"
    )


def study(rows: int, data: str | None, target: str, job: Job) -> Callable[[Any, Ranking], None]:
    """Give what measures every group alone on some rows, and records it; nothing is measured on none."""

    def measured(module: Any, ranking: Ranking) -> None:
        from modelpack.numerics.pruning import sensitivity

        assert data is not None, "checked when the recipe was read"
        samples = sensitivity.gather(job.data[data].batches, job.inputs, rows, target, job.device)
        found = sensitivity.measure(
            module, ranking, samples, watch=lambda groups: job.track(groups, len(groups), "sensitivity")
        )
        job.result("sensitivity", found.to_json())
        names = ", ".join(item.group for item in found.worst(_TOLD))
        job.note(f"most sensitive: {names} (by {_NAMES[found.measure]} on {found.rows} rows)")

    return measured if rows else lambda _module, _ranking: None
