"""Corrections: constants of a quantized graph that bring the float layers' outputs out of quantized inputs.

Each layer is fitted with every layer before it already quantized and corrected, so that errors are made up for where
they arise and do not add up. Correcting several layers at once, each as if the others were still float, makes networks
worse; only `bias` does so, which takes back no more than each layer's own shift. A channel is changed only where the
error that is measured on rows kept out of the fit falls, and the model only where its outputs come closer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.measure.comparison import decibels
from modelpack.numerics.quantization.correction import adaround, fast_bias, rounding, samples
from modelpack.numerics.quantization.correction.padding import padding
from modelpack.numerics.quantization.correction.subject import KEPT_OUT, Graph, Subject, kept_out, obstacle
from modelpack.numerics.quantization.correction.walk import Walk, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.quantization.correction.padding import Padding
    from modelpack.numerics.quantization.correction.rounding import Bounds
    from modelpack.numerics.rows import Feed

    Reals = NDArray[np.float64]
    Correction = Literal["bias", "sequential", "rounding", "adaround"]
    Rounder = Callable[[Reals, Reals, Reals, Bounds], Reals]

POSITIONS = 40_000
"""Positions of a layer's output that are looked at, about."""

DAMPING = 0.01
"""Share of the mean diagonal that is added to the moments' diagonal."""

FEWEST = 2 * KEPT_OUT
"""Rows without which nothing can be fitted and measured."""


@dataclass(frozen=True)
class Gain:
    """What a correction did to a layer.

    Attributes:
        layer: The node's name.
        before: Signal-to-noise ratio of its outputs beforehand, in decibels, on rows kept out of the fit.
        after: The same afterwards.
        changed: How many channels were changed.
        channels: How many it has.
        reason: Why it, or its weights, were left alone; empty when they were not.
    """

    layer: str
    before: float | None = None
    after: float | None = None
    changed: int = 0
    channels: int = 0
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Give the gain as one JSON object."""
        return {
            "layer": self.layer,
            "sqnr_db_before": self.before,
            "sqnr_db": self.after,
            "channels": self.channels,
            "changed_channels": self.changed,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Corrected:
    """A corrected graph.

    Attributes:
        model: The graph; the one given when its outputs did not come closer to the float graph's.
        gains: What was done to each layer.
        kept: Whether the corrections are in it.
        before: Noise of the outputs on rows kept out, relative to their power, before.
        after: The same with the corrections.
    """

    model: ModelProto
    gains: tuple[Gain, ...] = field(repr=False)
    kept: bool
    before: float
    after: float


def correct(
    model: ModelProto,
    plain: ModelProto,
    chosen: Iterable[str],
    feeds: Sequence[Feed],
    correction: Correction,
    *,
    mask: str = "",
    seed: int = 0,
    device: str = "cpu",
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Corrected:
    """Fit a statically quantized graph's constants to the float graph.

    Args:
        model: The float graph.
        plain: The quantized graph, with the same names of layers; it stays as it is.
        chosen: Names of the quantized layers.
        feeds: Rows to fit on and to measure with.
        correction: ``bias``: take back every layer's own shift, from one pass over the float graph;
            ``sequential``: biases layer after layer; ``rounding``: weights rounded together (see `rounding`), then
            biases; ``adaround``: weights by learned rounding (see `adaround`), then biases.
        mask: The input that is 1 at real positions and 0 at padded ones, which then do not count;
            empty when all are real.
        seed: Seed of the choice of positions.
        device: Where both graphs run, and where rounding is learned.
        track: Passes the layers' names through, showing progress.

    Raises:
        StageError: When there are too few rows, or the mask holds anything but 0 and 1.
    """
    total = sum(_rows(feed) for feed in feeds)
    if total < FEWEST:
        raise StageError(f"`correction: {correction}` needs {FEWEST} rows or more, the data gave {total}")
    twin = onnxfile.copied(plain)
    graph, names = Graph(model, twin), list(chosen)
    left = {name: reason for name in names if (reason := obstacle(name, graph))}
    subjects = sorted((Subject(name, graph) for name in names if name not in left), key=lambda item: item.place)
    goals = [*(item.goal for item in subjects), *(item.name for item in model.graph.output)]
    padded = padding(model, goals, mask, feeds, device)
    floats = Walk(model, feeds, device)
    bytes_ = None if correction == "bias" else Walk(twin, feeds, device)
    rounder = _rounder(correction, device)
    gains = {name: Gain(name, reason=reason) for name, reason in left.items()}
    for number, name in enumerate(track([item.name for item in subjects])):
        subject, generator = subjects[number], np.random.default_rng([seed, number])
        pairs = fast_bias.pairs(subject, floats) if bytes_ is None else _pairs(subject, floats, bytes_)
        _look(subject, pairs, padded, -(-POSITIONS // len(feeds)), generator, products=rounder is not None)
        gains[name] = improve(subject, rounder)
        subject.forget()
    before, after = noise(model, [plain, twin], feeds, padded, device)
    kept = after <= before
    return Corrected(twin if kept else plain, tuple(gains[name] for name in names), kept, before, after)


def _rounder(correction: Correction, device: str) -> Rounder | None:
    if correction == "adaround":
        return partial(adaround.learned, device=device)
    return rounding.rounded if correction == "rounding" else None


def noise(
    model: ModelProto, twins: Sequence[ModelProto], feeds: Iterable[Feed], padded: Padding, device: str = "cpu"
) -> list[float]:
    """Sum the squared differences of graphs' outputs from the float one's, relative to their size, on rows kept out."""
    names = [item.name for item in model.graph.output]
    reference, *subjects = (opened(item, device) for item in (model, *twins))
    total, power, seen = np.zeros((len(twins), len(names))), np.zeros(len(names)), 0
    for batch, feed in enumerate(feeds):
        expected = runtime.execute(reference, feed, names)
        for number, subject in enumerate(subjects):
            got = runtime.execute(subject, feed, names)
            for place, name in enumerate(names):
                wanted, given = (np.atleast_1d(side[name]).astype(np.float64) for side in (expected, got))
                out = kept_out(np.arange(len(wanted)) + seen)
                counted = padded.real(name, batch, wanted.shape)[out]
                power[place] += float(np.square(wanted[out])[counted].sum()) if number == 0 else 0.0
                total[number, place] += float(np.square(given[out] - wanted[out])[counted].sum())
        seen += _rows(feed)
    return [float(item) for item in (total / np.where(power > 0, power, 1.0)).sum(axis=1)]


def _rows(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _pairs(subject: Subject, floats: Walk, bytes_: Walk) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """Run both graphs on to a layer; give, batch by batch, what it sees and what it should give."""
    goals = floats.reach(subject.float_place + 1, [subject.goal])
    for goal, given in zip(goals, bytes_.reach(subject.place, [subject.source]), strict=True):
        yield given[subject.source], goal[subject.goal]


def _look(
    subject: Subject,
    pairs: Iterable[tuple[NDArray[np.generic], NDArray[np.generic]]],
    padded: Padding,
    most: int,
    generator: np.random.Generator,
    *,
    products: bool,
) -> None:
    """Gather some positions of each batch, but no padded ones."""
    last, seen = not subject.shape.kernel, 0
    for batch, (given, goal) in enumerate(pairs):
        values, wanted = np.atleast_2d(given, goal) if last else (given, goal)
        real = padded.real(subject.goal, batch, wanted.shape[:-1]) if last else None
        spots = samples.positions(wanted.shape, channels_last=last, most=most, generator=generator, real=real)
        subject.see(values, wanted, spots, products=products and not subject.fixed, seen=seen)
        seen += len(wanted)


def improve(subject: Subject, rounder: Rounder | None) -> Gain:
    """Try other constants, keep each channel's where its measured error falls, and write them into the graph."""
    steps, bias = subject.steps(), _present(subject)
    first = best = subject.error(steps, bias)
    changed = np.zeros(first.shape, np.bool_)
    for candidate in _candidates(subject, steps, rounder):
        moved = _shifted(subject, candidate, bias)
        error = subject.error(candidate, moved)
        falls = error < best
        steps = np.where(falls[:, :, None], candidate, steps)
        bias = np.where(falls.reshape(-1), moved, bias)
        best, changed = np.where(falls, error, best), changed | falls
    subject.write(steps, bias)
    power = float(subject.held.power().sum())
    before, after = (decibels(power, float(error.sum())) for error in (first, best))
    return Gain(subject.name, before, after, int(changed.sum()), changed.size, _reason(subject, rounder))


def _reason(subject: Subject, rounder: Rounder | None) -> str:
    """Say what could not be fitted."""
    parts = [f"its weights were left alone: {subject.fixed}"] if rounder is not None and subject.fixed else []
    return "; ".join([*parts, "it has no bias of its own"] if subject.bias is None else parts)


def _present(subject: Subject) -> Reals:
    return np.zeros(subject.scales.size) if subject.bias is None else subject.bias.real()


def _candidates(subject: Subject, steps: Reals, rounder: Rounder | None) -> Iterator[Reals]:
    """Give weights to try, each with the bias that suits it: those that are there, and fitted ones."""
    if subject.bias is not None:
        yield steps
    if rounder is not None and not subject.fixed and subject.fit is not None:
        square, cross = subject.fit.about(subject.zero) if subject.bias is None else subject.fit.centred()
        target = rounding.fitted(subject.weights, square, cross / subject.input_scale, DAMPING)
        yield rounder(target, subject.scales, rounding.damped(square, DAMPING), subject.bounds())


def _shifted(subject: Subject, steps: Reals, bias: Reals) -> Reals:
    """Give the bias that takes the mean of *wanted minus got* back, for these weights."""
    if subject.bias is None or subject.fit is None or not subject.fit.count:
        return bias
    inputs, outputs = subject.fit.means(subject.zero)
    products = (steps @ inputs[:, :, None])[:, :, 0] * subject.scales * subject.input_scale
    return subject.bias.settled((outputs - products).reshape(-1))
