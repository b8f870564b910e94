"""Cross-layer equalization: channels between two layers are rescaled until both layers' weights span the same range.

After Nagel et al. 2019 (arXiv 1906.04721, section 4.1). Between a layer and the next lies nothing, or what gives a
scaled channel back when its input is scaled: ``f(s x) = s f(x)`` for ``s > 0``. Dividing a channel's outgoing weights
and bias by ``s`` and multiplying the weights that read it by ``s`` then changes no output, needs no data, and
``s = sqrt(r1 r2) / r2`` makes both ranges ``sqrt(r1 r2)``. Layers in a row are gone through until nothing moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.layers import channel_axis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    Reals = NDArray[np.float64]

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose weights are rescaled."""

ALIKE = frozenset({"Relu", "LeakyRelu", "PRelu"})
"""Operators that give a scaled channel for a scaled channel."""

POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
"""Those that do so for the channels of pictures."""

DEAD = 1e-6
"""Share of a layer's largest range below which a channel counts as dead; scaling it up would scale its bias up."""

SETTLED = 1e-5
"""Largest change of a factor, relative, at which all pairs count as equal."""

ROUNDS = 200
"""How often all pairs are gone through, at most."""


@dataclass(frozen=True)
class Pair:
    """Two layers with channels between them.

    Attributes:
        first: Name of the layer that gives the channels.
        second: Name of the layer that alone reads them.
        channels: How many.
        factor: The most that a channel was multiplied or divided by.
        reason: Why they were left alone; empty when they were not.
    """

    first: str
    second: str
    channels: int = 0
    factor: float = 1.0
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Give the pair as one JSON object."""
        return {
            "first": self.first,
            "second": self.second,
            "channels": self.channels,
            "largest_factor": self.factor,
            "reason": self.reason,
        }


def equalize(model: ModelProto) -> tuple[ModelProto, list[Pair]]:
    """Equalize every pair of layers that can be.

    Args:
        model: A prepared float graph; it stays as it is.

    Returns:
        A new model with the same outputs, and every pair found, in the graph's order.
    """
    twin = onnxfile.copied(model)
    links = _links(twin.graph)
    read = {name for link in links if not link.pair.reason for name in link.constants}
    tensors = onnxfile.constants(twin.graph)
    values = {name: onnxfile.array(tensors[name]).astype(np.float64) for name in sorted(read)}
    total = _settled([link for link in links if not link.pair.reason], values)
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return twin, [_told(link, total) for link in links]


@dataclass(frozen=True)
class _Link:
    """A pair as nodes: two layers, and the biases that are scaled with the first one's weights."""

    pair: Pair
    first: NodeProto
    second: NodeProto
    biases: tuple[str, ...] = ()

    @property
    def constants(self) -> tuple[str, ...]:
        return self.first.input[1], *self.biases, self.second.input[1]


def _told(link: _Link, total: Mapping[str, Reals]) -> Pair:
    if link.pair.reason:
        return link.pair
    factors = total[link.pair.first]
    return replace(link.pair, channels=factors.size, factor=float(np.exp(np.abs(np.log(factors)).max(initial=0.0))))


def _links(graph: GraphProto) -> list[_Link]:
    readers, fixed = onnxfile.consumers(graph), onnxfile.constants(graph)
    found = []
    for node in graph.node:
        if node.op_type in LAYERS and node.input[1] in fixed:
            link = _followed(graph, node, readers)
            if link is not None:
                found.append(link)
    return found


def _followed(graph: GraphProto, node: NodeProto, readers: Mapping[str, list[NodeProto]]) -> _Link | None:
    """Follow a layer's output to the next layer; None when something else comes first."""
    fixed, given = onnxfile.constants(graph), {item.name for item in graph.output}
    biases = [name for name in node.input[2:3] if name]
    value, reason = node.output[0], ""
    while True:
        after = readers.get(value, [])
        second = next((item for item in after if _reads(node, item, value, fixed)), None)
        if value in given or len(after) != 1:
            reason = reason or "others read the channels between them too"
        if second is not None:
            link = _Link(Pair(node.name, second.name), node, second, tuple(biases))
            return replace(link, pair=replace(link.pair, reason=reason or _unfit(link, fixed, readers)))
        if len(after) != 1:
            return None
        bias = _added(node, after[0], value, fixed)
        if bias:
            biases.append(bias)
        elif after[0].op_type == "Clip":
            reason = reason or _cut(after[0], fixed)
        elif not _alike(node, after[0], value):
            return None
        value = after[0].output[0]


def _reads(node: NodeProto, second: NodeProto, value: str, fixed: Mapping[str, TensorProto]) -> bool:
    """Whether a layer reads the channels of another one as its own inputs."""
    if second.op_type not in LAYERS or second.input[0] != value or second.input[1] not in fixed:
        return False
    if (node.op_type == "Conv") != (second.op_type == "Conv") or onnxfile.attribute(second, "transA", 0):
        return False
    return second.op_type == "Conv" or len(fixed[second.input[1]].dims) == 2


def _alike(node: NodeProto, after: NodeProto, value: str) -> bool:
    """Whether an operator gives a scaled channel for a scaled channel."""
    able = ALIKE | POOLS if node.op_type == "Conv" else ALIKE
    return after.op_type in able and list(after.input).count(value) == 1 and after.input[0] == value


def _added(node: NodeProto, after: NodeProto, value: str, fixed: Mapping[str, TensorProto]) -> str:
    """Name the constant that is added to a matrix product, its bias; empty when there is none."""
    if node.op_type != "MatMul" or after.op_type != "Add" or value != node.output[0]:
        return ""
    return next((str(name) for name in after.input if name != value and name in fixed), "")


def _cut(clip: NodeProto, fixed: Mapping[str, TensorProto]) -> str:
    """Say why a clip does not give a scaled channel for a scaled one; empty when it is a ReLU by another name."""
    names = [*clip.input[1:], "", ""][:2]
    low, high = (
        absent if not name else float(onnxfile.array(fixed[name])) if name in fixed else np.nan
        for name, absent in zip(names, (-np.inf, np.inf), strict=True)
    )
    if low in (0.0, -np.inf) and high >= np.finfo(np.float32).max:
        return ""
    return "a clip between them cuts all channels at the same value, which would no longer hold"


def _unfit(link: _Link, fixed: Mapping[str, TensorProto], readers: Mapping[str, list[NodeProto]]) -> str:
    """Say what about the constants of two layers forbids to rescale them; empty when nothing."""
    for name in link.constants:
        if name not in fixed:
            return f"'{name}' is computed by the graph"
        if len(readers[name]) > 1 or link.constants.count(name) > 1:
            return f"others read '{name}' too"
        if fixed[name].data_type != TensorProto.FLOAT:
            return f"'{name}' is not float32"
    dims = fixed[link.first.input[1]].dims
    channels = dims[channel_axis(link.first)]
    if link.first.op_type == "MatMul" and len(dims) != 2:
        return f"'{link.first.input[1]}' has {len(dims)} dimensions"
    if any([*fixed[name].dims][-1:] != [channels] or math.prod(fixed[name].dims) != channels for name in link.biases):
        return f"'{link.biases[-1]}' is not one value per channel"
    return ""


def _settled(links: list[_Link], values: dict[str, Reals]) -> dict[str, Reals]:
    """Rescale weights until nothing moves; gives what each first layer's channels were divided by in all."""
    total = {link.pair.first: np.ones(1) for link in links}
    for _ in range(ROUNDS):
        most = 0.0
        for link in links:
            factors = _factors(link, values)
            _scale(link, factors, values)
            total[link.pair.first] = total[link.pair.first] * factors
            most = max(most, float(np.abs(factors - 1).max(initial=0.0)))
        if most <= SETTLED:
            break
    return total


def _factors(link: _Link, values: Mapping[str, Reals]) -> Reals:
    """Give what to divide each channel by, ``(channels,)``; 1 for a dead one."""
    outgoing = _outgoing(link.first, values[link.first.input[1]])
    one, two = (np.abs(part).max(axis=1) for part in (outgoing, _incoming(link, values)))
    alive = (one > DEAD * one.max(initial=0.0)) & (two > DEAD * two.max(initial=0.0))
    return np.asarray(np.sqrt(np.divide(one, two, out=np.ones_like(one), where=alive)), dtype=np.float64)


def _outgoing(node: NodeProto, weights: Reals) -> Reals:
    """View weights with one row per output channel, ``(channels, others)``."""
    return np.moveaxis(weights, channel_axis(node), 0).reshape(weights.shape[channel_axis(node)], -1)


def _incoming(link: _Link, values: Mapping[str, Reals]) -> Reals:
    """View the second layer's weights with one row per input channel, ``(channels, others)``."""
    node, weights = link.second, values[link.second.input[1]]
    if node.op_type != "Conv":
        return np.moveaxis(weights, 1 - channel_axis(node), 0)
    groups = onnxfile.attribute(node, "group", 1)
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return np.swapaxes(parts, 1, 2).reshape(groups * weights.shape[1], -1)


def _scale(link: _Link, factors: Reals, values: dict[str, Reals]) -> None:
    """Divide what gives each channel by its factor, and multiply what reads it."""
    first, second = link.first.input[1], link.second.input[1]
    axis = channel_axis(link.first)
    shape = [-1 if place == axis else 1 for place in range(values[first].ndim)]
    values[first] = values[first] / factors.reshape(shape)
    for name in link.biases:
        values[name] = values[name] / factors
    weights = values[second]
    if link.second.op_type != "Conv":
        shape = [1, 1]
        shape[1 - channel_axis(link.second)] = -1
        values[second] = weights * factors.reshape(shape)
        return
    groups = onnxfile.attribute(link.second, "group", 1)
    parts = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    values[second] = (parts * factors.reshape(groups, 1, -1, 1)).reshape(weights.shape)
