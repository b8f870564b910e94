"""Mixtures of float and quantized layers on trial: close to the float model on all rows, and fast on one."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError
from modelpack.numerics import graph, onnxfile, rows, runtime
from modelpack.numerics.measure import timing
from modelpack.numerics.measure.comparison import Comparison
from modelpack.numerics.measure.metrics import LabelMetrics
from modelpack.numerics.measure.statistics import ratio
from modelpack.numerics.quantization.mixing.front import Point
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.measure.statistics import Ratio
    from modelpack.numerics.quantization.settings import Budget, Evidence
    from modelpack.numerics.rows import Feed

_TOLD = frozenset({"sqnr_db", "cosine", "agreement"})
"""Figures of a comparison that the front shows."""

ROUNDS, SECONDS = 40, 60.0
"""Limits of the measurement of times."""


def check(reference: ModelProto, budget: Budget, evidence: Evidence) -> None:
    """See on the first rows whether a budget can be judged at all.

    Raises:
        StageError: When it needs labels and the data have none, or figures that the output does not have.
    """
    few = replace(
        evidence,
        read=lambda label, limit: islice(evidence.read(label, limit), 1),
        labelled=lambda label: islice(evidence.labelled(label), 1),
    )
    judge(reference, [reference], budget, few)


def measure(
    reference: ModelProto, models: Mapping[tuple[str, ...], ModelProto], budget: Budget, evidence: Evidence
) -> list[Point]:
    """Measure mixtures, each by the layers that it keeps in float."""
    graphs = list(models.values())
    measured = zip(judge(reference, graphs, budget, evidence), time(reference, graphs, evidence), strict=True)
    return [
        Point(kept, quality, onnxfile.size(model), speed, rounds)
        for (kept, model), (quality, (speed, rounds)) in zip(models.items(), measured, strict=True)
    ]


def judge(
    reference: ModelProto, models: Sequence[ModelProto], budget: Budget, evidence: Evidence
) -> list[dict[str, float]]:
    """Compare the first output of some models with that of the float one, on all rows.

    Raises:
        StageError: When the budget needs labels and the data have none, or figures that the output does not have.
    """
    inputs, output = inputs_of(reference), reference.graph.output[0].name
    compared = [Comparison(output, classes=None) for _ in models]
    labelled = budget.measure == "accuracy_drop"
    told = [LabelMetrics(["accuracy"], f"output '{output}'") for _ in range(len(models) + 1)]
    with _sessions([reference, *models], evidence.device) as opened:
        for feed, label in _rows(evidence, labelled=labelled):
            wanted, *given = (runtime.execute(session, feed, [output])[output] for session in opened)
            for comparison, values in zip(compared, given, strict=True):
                comparison.update(wanted, values, rows.count(feed, inputs))
            if label is not None:
                for metrics, values in zip(told, (wanted, *given), strict=True):
                    metrics.update(values, label)
    found = [{key: value for key, value in item.result().items() if key in _TOLD} for item in compared]
    if labelled:
        before, *after = (metrics.compute()["accuracy"] for metrics in told)
        found = [
            item | {"accuracy": now, "accuracy_drop": before - now} for item, now in zip(found, after, strict=True)
        ]
    if budget.measure not in found[0]:
        raise StageError(
            f"output '{output}' is no scores of classes, so that answers cannot agree",
            where="budget",
            then="give the budget as `sqnr_db`",
        )
    return found


def _rows(evidence: Evidence, *, labelled: bool) -> Iterator[tuple[Feed, NDArray[np.generic] | None]]:
    if not labelled:
        yield from ((feed, None) for feed in evidence.read("compare mixtures", None))
    else:
        yield from evidence.labelled("compare mixtures")


def time(
    reference: ModelProto, models: Sequence[ModelProto], evidence: Evidence
) -> list[tuple[Ratio, tuple[float, ...]]]:
    """Time one row through some models, in turns with the float one.

    Returns:
        For each model, how many times as fast as the float one it is, and its milliseconds in every round.
    """
    feed = rows.take(next(iter(evidence.read("time mixtures", None))), inputs_of(reference), 1)
    with _sessions([reference, *models], evidence.device) as opened:
        timers = [timing.of_session(session, feed, evidence.device) for session in opened]
        floats, *others = timing.interleave(timers, rounds=ROUNDS, seconds=SECONDS, warmup=3)
    return [(ratio(floats.rounds, series.rounds), tuple(series.rounds)) for series in others]


@contextlib.contextmanager
def _sessions(models: Sequence[ModelProto], device: str) -> Iterator[list[Any]]:
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(onnxfile.loadable(model)) for model in models]
        yield [runtime.session(place, device, threads=1) for place in places]


def inputs_of(model: ModelProto) -> dict[str, TensorSpec]:
    """Read what a model is fed."""
    return {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(model)["inputs"].items()}
