"""Reconstruction: layer after layer, weights and bias that bring the float layer's outputs out of quantized inputs.

Each layer is fitted with every layer before it already quantized and corrected, so that errors are made up for where
they arise and do not add up. Correcting several layers at once, each as if the others were still float, makes networks
worse. A channel is changed only where the error that is measured on rows kept out of the fit falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.measure.comparison import decibels
from modelpack.numerics.quantization import correction, rounding, samples
from modelpack.numerics.quantization.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from modelpack.numerics.quantization.samples import Shape
    from modelpack.numerics.rows import Feed

    Reals = NDArray[np.float64]

POSITIONS = 20_000
"""Positions of a layer's output that are looked at, about."""

KEPT_OUT = 4
"""One row in this many is measured on instead of fitted to."""

DAMPING = 0.01
"""Share of the mean diagonal that is added to the moments' diagonal."""

FEWEST = 2 * KEPT_OUT
"""Rows without which nothing can be fitted and measured."""

WIDEST = 8192
"""Inputs of one output above which a layer is left alone: its moments would take over half a gigabyte."""


@dataclass(frozen=True)
class Gain:
    """What reconstruction did to a layer.

    Attributes:
        layer: The node's name.
        before: Signal-to-noise ratio of its outputs beforehand, in decibels, on rows kept out of the fit.
        after: The same afterwards.
        changed: How many channels were changed.
        channels: How many it has.
    """

    layer: str
    before: float
    after: float
    changed: int
    channels: int

    def to_json(self) -> dict[str, object]:
        """Give the gain as one JSON object."""
        return {
            "layer": self.layer,
            "sqnr_db_before": self.before,
            "sqnr_db": self.after,
            "channels": self.channels,
            "changed_channels": self.changed,
        }


def reconstruct(
    model: ModelProto,
    twin: ModelProto,
    chosen: Iterable[str],
    feeds: Sequence[Feed],
    *,
    seed: int = 0,
    device: str = "cpu",
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[Gain]:
    """Fit a statically quantized graph's layers to the float graph. Changes the constants of `twin`.

    Args:
        model: The float graph.
        twin: What `static.quantize` made of it, with the same names of layers.
        chosen: Names of the quantized layers; those whose weights others share are left alone.
        feeds: Rows to fit on and to measure with.
        seed: Seed of the choice of positions.
        device: Where both graphs run.
        track: Passes the layers' names through, showing progress.

    Raises:
        StageError: When there are too few rows.
    """
    total = sum(_rows(feed) for feed in feeds)
    if total < FEWEST:
        raise StageError(f"reconstruction needs {FEWEST} rows or more, the data gave {total}")
    floats, bytes_ = Walk(model, feeds, device), Walk(twin, feeds, device)
    layers = [layer for name in chosen if (layer := _Layer.find(name, floats, bytes_)) is not None]
    layers.sort(key=lambda layer: layer.place)
    found = {layer.node.name: layer for layer in layers}
    gains = []
    for number, name in enumerate(track(list(found))):
        layer = found[name]
        _look(layer, floats, bytes_, np.random.default_rng([seed, number]))
        gains.append(layer.improve())
        layer.forget()
    return gains


def noise(model: ModelProto, twin: ModelProto, feeds: Iterable[Feed], device: str = "cpu") -> float:
    """Sum the squared differences of both graphs' outputs on rows kept out of the fit, relative to its size."""
    names = [item.name for item in model.graph.output]
    total, power, seen = np.zeros(len(names)), np.zeros(len(names)), 0
    with onnxfile.loadable(model) as one, onnxfile.loadable(twin) as two:
        reference, subject = runtime.session(one, device), runtime.session(two, device)
        for feed in feeds:
            expected, got = runtime.execute(reference, feed, names), runtime.execute(subject, feed, names)
            for place, name in enumerate(names):
                wanted, given = (np.atleast_1d(side[name]).astype(np.float64) for side in (expected, got))
                out = _kept_out(np.arange(len(wanted)) + seen)
                power[place] += float(np.square(wanted[out]).sum())
                total[place] += float(np.square(given[out] - wanted[out]).sum())
            seen += _rows(feed)
    return float((total / np.where(power > 0, power, 1.0)).sum())


def _rows(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _kept_out(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which rows are measured on, by their number."""
    return np.asarray(rows % KEPT_OUT == KEPT_OUT - 1)


def _look(layer: _Layer, floats: Walk, bytes_: Walk, generator: np.random.Generator) -> None:
    """Run both graphs up to a layer, and gather what it sees and should give."""
    wanted = layer.float_node.output[0]
    pairs = zip(floats.reach(layer.float_place + 1, [wanted]), bytes_.reach(layer.place, [layer.source]), strict=True)
    most, seen = -(-POSITIONS // len(floats.held)), 0
    for goal, given in pairs:
        layer.see(given[layer.source], goal[wanted], most, seen, generator)
        seen += len(goal[wanted])


class _Layer:
    """A layer in both graphs, its constants, and what was gathered about it."""

    def __init__(self, node: NodeProto, place: int, other: NodeProto, float_place: int, source: str) -> None:
        self.node, self.place, self.float_node, self.float_place = node, place, other, float_place
        self.source = source

    @classmethod
    def find(cls, name: str, floats: Walk, bytes_: Walk) -> _Layer | None:
        """Look a layer up; None when it cannot be reconstructed."""
        places = [
            next((place for place, node in enumerate(walk.model.graph.node) if node.name == name), None)
            for walk in (floats, bytes_)
        ]
        if places[0] is None or places[1] is None:
            return None
        node, other = bytes_.model.graph.node[places[1]], floats.model.graph.node[places[0]]
        layer = cls(node, places[1], other, places[0], bytes_.rounded(node.input[0]))
        return layer if layer._read(floats, bytes_) else None

    def _read(self, floats: Walk, bytes_: Walk) -> bool:
        """Find scales and constants; False where something is not as static quantization makes it."""
        graph = bytes_.model.graph
        readers, self.tensors = onnxfile.consumers(graph), {item.name: item for item in graph.initializer}
        rounded = [bytes_.makers.get(name) for name in self.node.input if name]
        if any(node is None or node.op_type != "DequantizeLinear" for node in rounded):
            return False
        made = [node for node in rounded if node is not None]
        table = made[1].input[0]
        if len(readers[made[1].output[0]]) + len(readers[table]) > 2:
            return False
        self.table, self.bias = table, made[2].input[0] if len(made) > 2 else ""
        self.scale, zero = (float(self._constant(name)) for name in made[0].input[1:3])
        self.zero = int(zero)
        scales = self._constant(made[1].input[1]).astype(np.float64)
        self.bias_steps = self._constant(made[2].input[1]).astype(np.float64) if self.bias else np.zeros(1)
        weights = onnxfile.array(onnxfile.constants(floats.model.graph)[self.float_node.input[1]])
        shape = samples.shape(self.float_node, weights)
        if shape is None or weights.size // scales.size > WIDEST:
            return False
        self.shape: Shape = shape
        self.weights = np.asarray(shape.split(weights), dtype=np.float64)
        self.scales = scales.reshape(self.weights.shape[:2])
        self.forget()
        return True

    def _constant(self, name: str) -> NDArray[np.generic]:
        return onnxfile.array(self.tensors[name])

    def forget(self) -> None:
        """Free what was gathered."""
        self.fit = samples.Moments.empty(0, 0, 0)
        self.held = samples.Held()

    def see(
        self,
        given: NDArray[np.generic],
        goal: NDArray[np.generic],
        most: int,
        seen: int,
        generator: np.random.Generator,
    ) -> None:
        """Take positions of one batch: every `KEPT_OUT`-th row is kept out of the fit."""
        last = not self.shape.kernel
        if last:
            given, goal = np.atleast_2d(given, goal)
        if self.fit.count == 0 and not self.fit.inputs.size:
            self.fit = samples.Moments.empty(*self.weights.shape)
        spots = samples.positions(goal.shape, channels_last=last, most=most, generator=generator)
        inputs = self.shape.gather(given, spots, self.zero).astype(np.int16) - np.int16(self.zero)
        wanted = samples.at(goal, spots, self.shape)
        out = _kept_out(spots[0] + seen)
        self.fit.add(inputs[:, ~out], wanted[:, ~out])
        self.held.inputs.append(inputs[:, out])
        self.held.wanted.append(wanted[:, out])

    def improve(self) -> Gain:
        """Round again, correct the bias, and keep each where it helps."""
        old = self._constant(self.table)
        steps = np.asarray(self.shape.split(old), dtype=np.float64)
        bias = self._constant(self.bias).astype(np.int32) if self.bias else np.zeros(self.scales.size, np.int32)
        first = best = self._error(steps, bias)
        changed = np.zeros(self.scales.shape, np.bool_)
        for candidate in (steps, self._rounded()):
            moved = self._shifted(candidate, bias)
            error = self._error(candidate, moved)
            falls = correction.better(best, error)
            steps = np.where(falls[:, :, None], candidate, steps)
            bias = np.where(falls.reshape(-1), moved, bias)
            best, changed = np.where(falls, error, best), changed | falls
        self._write(self.table, self.shape.join(steps.astype(np.int8), old))
        if self.bias:
            self._write(self.bias, bias)
        power = float(self.held.power().sum())
        before, after = (decibels(power, float(error.sum())) for error in (first, best))
        return Gain(self.node.name, before, after, int(changed.sum()), changed.size)

    def _rounded(self) -> Reals:
        square, cross = self.fit.centred() if self.bias else (self.fit.square, self.fit.cross)
        target = rounding.fitted(self.weights, square, cross / self.scale, DAMPING)
        return rounding.rounded(target, self.scales, rounding.damped(square, DAMPING))

    def _shifted(self, steps: Reals, bias: NDArray[np.int32]) -> NDArray[np.int32]:
        """Correct the bias for these weights."""
        if not self.bias or not self.fit.count:
            return bias
        products = (steps @ self.fit.inputs[:, :, None])[:, :, 0] * self.scales * self.scale
        shift = (self.fit.outputs - products).reshape(-1) / self.fit.count - bias * self.bias_steps
        return correction.corrected(bias, self.bias_steps, shift)

    def _error(self, steps: Reals, bias: NDArray[np.int32]) -> Reals:
        real = (bias * self.bias_steps).reshape(self.scales.shape)
        return self.held.error(steps, self.scales * self.scale, real)

    def _write(self, name: str, values: NDArray[np.generic]) -> None:
        tensor: TensorProto = self.tensors[name]
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
