"""The target of a latency: a fraction of the time that the unpruned model takes in onnxruntime, on this machine.

The search asks a formula made of measured times of layers; what it finds is exported and measured against the unpruned
model, the two taking turns, and the search aims again until the measured fraction is met.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelpack.numerics import macs
from modelpack.numerics.measure.timing import interleave
from modelpack.numerics.pruning import cost
from modelpack.numerics.pruning.targets import Meter, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from modelpack.numerics.measure.timing import Timer
    from modelpack.numerics.pruning.cost import Times
    from modelpack.numerics.pruning.groups import Group

TOLERANCE = 0.05
"""How far from the target the measured fraction may be, relative to it; noise is less."""

TRIALS = 10
"""How many pruned models are exported and measured at most."""

ROUNDS, SECONDS = 40, 8.0
"""Turns of the two models in a trial, and the time after which it begins no further one once there are enough."""


class Stopwatch(Protocol):
    """Takes times of modules."""

    def times(self, module: nn.Module) -> Times:
        """Give what the layers of a module take."""

    def timer(self, module: nn.Module) -> Timer:
        """Make what runs a module once and gives the milliseconds it took."""


@dataclass
class Log:
    """How a latency was met, filled while it is.

    Attributes:
        asked: The fraction that was asked for.
        original_ms: What the unpruned model takes, by the median of the first trial.
        costs: What a unit of each group costs, of the model that was cut last.
        trials: Fractions of time and of multiply-accumulates of every model that was measured.
        exports: How many models were exported.
        seconds: What all of it took.
    """

    asked: float
    original_ms: float = 0.0
    costs: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, float]] = field(default_factory=list)
    exports: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return {**vars(self), "seconds": round(self.seconds, 1)}


def of_latency(
    keep: float,
    watch: Stopwatch,
    tell: Callable[[str], None] = lambda _text: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Target, Log]:
    """Keep a fraction of the time, within 5 %.

    Args:
        keep: The fraction.
        watch: What takes the times.
        tell: Told of every trial in words.
        clock: Gives seconds.

    Returns:
        The target, and a log of what was measured on the way to it.
    """
    log, originals = Log(keep), _Originals(watch)

    def meter(module: nn.Module, feed: Mapping[str, Tensor], groups: Sequence[Group], whole: nn.Module) -> Meter:
        began = clock()
        times = watch.times(module)
        formula = cost.formula(times, module, groups)
        log.costs = cost.table(formula, groups, times.total / 1000)
        total, original = max(1, macs.count(whole, feed)), originals.timer(whole)
        before = 1.0 if module is whole else compare(original, watch.timer(module), clock)[0]
        log.exports += 1
        log.seconds += clock() - began

        def measure(smaller: nn.Module) -> float:
            began = clock()
            found, original_ms = compare(original, watch.timer(smaller), clock)
            log.original_ms = log.original_ms or original_ms
            log.trials.append({"measured": found, "macs": macs.count(smaller, feed) / total})
            tell(f"{log.trials[-1]['macs']:.1%} of the multiply-accumulates take {found:.1%} of the time")
            log.exports += 1
            log.seconds += clock() - began
            return found

        return Meter(lambda counts: before * formula(counts), measure)

    return Target("latency", "measured time", keep, meter, TOLERANCE, TRIALS), log


class _Originals:
    """Times the unpruned model, which is exported once however often it is compared with."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._known: tuple[nn.Module, Timer] | None = None

    def timer(self, whole: nn.Module) -> Timer:
        """Make what runs the unpruned model once, or give what was made before."""
        if self._known is None or self._known[0] is not whole:
            self._known = whole, self._watch.timer(whole)
        return self._known[1]


def compare(original: Timer, smaller: Timer, clock: Callable[[], float] = time.monotonic) -> tuple[float, float]:
    """Let two models take turns.

    Returns:
        The median over rounds of the fraction of the original's time that the smaller one takes, and the original's
        median in milliseconds.
    """
    whole, part = interleave([original, smaller], rounds=ROUNDS, seconds=SECONDS, warmup=3, clock=clock)
    ratios = [short / long for long, short in zip(whole.rounds, part.rounds, strict=True)]
    return statistics.median(ratios), statistics.median(whole.rounds)
