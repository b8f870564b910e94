"""SmoothQuant: outliers of activations are moved into the weights that read them, channel by channel.

After Xiao et al. 2022 (arXiv 2211.10438). A matrix product's inputs are divided by ``s = max|X|^a / max|W|^(1-a)``,
per channel, and the weights' rows multiplied by it: the product stays, but one grid for all channels of ``X`` now fits
them. The division costs nothing, as it is folded into what makes ``X``:

1. the scale and bias of a ``LayerNormalization``;
2. a constant that it is multiplied with, and one that is added after that: a normalization in its parts;
3. the weights and bias of the matrix product before it, also through a ``Relu``.

All products that read ``X`` (query, key and value) share one factor. Where others read it too, such as the residual of
a network that normalizes after the sum, they read it times ``s``, by one small multiplication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.layers import channel_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    Reals = NDArray[np.float64]

PRODUCTS = frozenset({"MatMul", "Gemm"})
"""Operators whose inputs are smoothed."""

SMALLEST = 1e-5
"""Bounds of a factor are this and its inverse, times the tensor's median factor: only ratios of channels matter."""


@dataclass(frozen=True)
class Place:
    """A tensor that matrix products read.

    Attributes:
        tensor: Its name.
        layers: Names of the products.
        reason: Why it cannot be smoothed; empty when it can.
        folded: The constants that are divided by the factors, each with its axis of channels.
        others: How many nodes beside the products read it.
    """

    tensor: str
    layers: tuple[str, ...]
    reason: str
    folded: tuple[tuple[str, int], ...] = ()
    others: int = 0

    def to_json(self) -> dict[str, object]:
        """Give the place as one JSON object."""
        return {
            "tensor": self.tensor,
            "layers": list(self.layers),
            "smoothed": not self.reason,
            "other_readers": self.others,
            "reason": self.reason,
        }


def channels(model: ModelProto, chosen: Iterable[str]) -> list[str]:
    """Name the tensors whose largest magnitudes per channel (last axis) are needed.

    Args:
        model: A prepared float graph.
        chosen: Names of the layers to quantize.
    """
    return [place.tensor for place in places(model, chosen) if not place.reason]


def places(model: ModelProto, chosen: Iterable[str]) -> list[Place]:
    """List every input of the chosen matrix products, in the graph's order, with the reason where it stays as it is."""
    graph, wanted = _Graph(model), frozenset(chosen)
    nodes = [node for node in model.graph.node if node.name in wanted and node.op_type in PRODUCTS]
    return [graph.place(name) for name in dict.fromkeys(node.input[0] for node in nodes)]


def factors(
    model: ModelProto, largest: Mapping[str, NDArray[np.generic]], alpha: float
) -> dict[str, NDArray[np.float32]]:
    """Give what the channels of tensors are divided by.

    Args:
        model: A prepared float graph.
        largest: Largest magnitudes per channel, of tensors from `channels`.
        alpha: How much moves: 0 leaves the weights as even as can be, 1 the activations.

    Returns:
        Tensor → factors, ``(channels,)``; the median one for channels that are always zero.
    """
    graph = _Graph(model)
    found = {}
    for name, values in largest.items():
        inputs = values.astype(np.float64)
        weights = np.max([graph.rows(node) for node in graph.products(name)], axis=0)
        alive = (inputs > 0) & (weights > 0)
        moved = inputs[alive] ** alpha / weights[alive] ** (1 - alpha)
        usual = float(np.median(moved)) if moved.size else 1.0
        # A dead channel takes the usual factor, not 1: beside far smaller ones, its weights alone would set the grid.
        by = np.full_like(inputs, usual)
        by[alive] = np.clip(moved, usual * SMALLEST, usual / SMALLEST)
        found[name] = by.astype(np.float32)
    return found


def smoothed(model: ModelProto, found: Mapping[str, NDArray[np.float32]]) -> ModelProto:
    """Divide tensors by their factors, and multiply the weights that read them.

    Args:
        model: A prepared float graph; it stays as it is.
        found: Factors, from `factors`.

    Returns:
        A new model with the same outputs.

    Raises:
        StageError: When factors are of a tensor that cannot be smoothed, or not one per channel.
    """
    twin = onnxfile.copied(model)
    graph = _Graph(twin)
    tensors = {item.name: item for item in twin.graph.initializer}
    for name, values in found.items():
        by, place = values.astype(np.float64), graph.divided(name, values.size)
        for constant, axis in place.folded:
            _scale(tensors[constant], 1 / by, axis)
        for node in graph.products(name):
            _scale(tensors[node.input[1]], by, 1 - channel_axis(node))
        if place.others:
            _give_back(twin, name, values, {node.name for node in graph.products(name)})
    return twin


def _scale(tensor: TensorProto, by: Reals, axis: int) -> None:
    """Multiply a constant along one axis; one value for all channels becomes one each."""
    values = onnxfile.array(tensor).astype(np.float64)
    shape = [1] * max(values.ndim, 1)
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array((values * by.reshape(shape)).astype(np.float32), tensor.name))


def _give_back(model: ModelProto, name: str, by: NDArray[np.float32], products: set[str]) -> None:
    """Let all readers but the products read a tensor as it was."""
    constant, whole = f"{name}:factors", f"{name}:unsmoothed"
    model.graph.initializer.append(numpy_helper.from_array(by, constant))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name not in products:
            for place, value in enumerate(node.input):
                if value == name:
                    node.input[place] = whole
        nodes.append(node)
        if name in node.output:
            nodes.append(helper.make_node("Mul", [name, constant], [whole], name=f"{name}/Unsmooth"))
    onnxfile.replace_nodes(model.graph, nodes)


class _Graph:
    """A graph, with what is looked up in it again and again."""

    def __init__(self, model: ModelProto) -> None:
        self.fixed = onnxfile.constants(model.graph)
        self.makers = onnxfile.producers(model.graph)
        self.readers = onnxfile.consumers(model.graph)
        self.given = {item.name for item in model.graph.output}
        self.outer = {node.name for node in model.graph.node}

    def products(self, name: str) -> list[NodeProto]:
        """List the matrix products with constant weights that read a tensor."""
        return [
            node
            for node in self.readers.get(name, [])
            if node.op_type in PRODUCTS and node.input[0] == name and self._weights(node) is not None
        ]

    def _weights(self, node: NodeProto) -> TensorProto | None:
        tensor = self.fixed.get(node.input[1])
        fits = tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        return tensor if fits and not onnxfile.attribute(node, "transA", 0) else None

    def rows(self, node: NodeProto) -> Reals:
        """Give the largest magnitude of the weights that read each channel."""
        values = onnxfile.array(self.fixed[node.input[1]]).astype(np.float64)
        return np.asarray(np.abs(values).max(axis=channel_axis(node)), dtype=np.float64)

    def place(self, name: str) -> Place:
        """Say whether and how a tensor can be divided."""
        products = self.products(name)
        layers = tuple(node.name for node in products)
        if not products:
            return Place(name, layers, "no matrix product with constant weights reads it")
        others = len(self.readers.get(name, [])) - len(products)
        shared = next((node.input[1] for node in products if len(self.readers[node.input[1]]) > 1), None)
        if shared is not None:
            return Place(name, layers, f"others read the weights '{shared}' too")
        if name in self.given:
            return Place(name, layers, "it is an output of the model")
        if any(node.name not in self.outer for node in self.readers.get(name, [])):
            return Place(name, layers, "a branch or loop reads it")
        size = self.rows(products[0]).size
        folded = self._folded(name, size)
        if isinstance(folded, str):
            return Place(name, layers, folded)
        return Place(name, layers, "", tuple(folded), others)

    def divided(self, name: str, count: int) -> Place:
        """Say how a tensor is divided by so many factors.

        Raises:
            StageError: When it cannot be.
        """
        place = self.place(name)
        size = 0 if place.reason else self.rows(self.products(name)[0]).size
        if size != count:
            why = place.reason or f"it has {size} channels"
            raise StageError(
                f"the calibration's {count} factors of '{name}' do not fit: {why}",
                where="calibration",
                then="calibrate again",
            )
        return place

    def _folded(self, name: str, size: int) -> list[tuple[str, int]] | str:
        """List the constants that divide a tensor's channels, or say why there are none."""
        node = self.makers.get(name)
        if node is None:
            return "it is an input of the model"
        if node.op_type == "LayerNormalization" and onnxfile.attribute(node, "axis", -1) == -1:
            return self._fit([(value, -1) for value in node.input[1:] if value], size)
        if node.op_type in PRODUCTS and self._weights(node) is not None:
            axes = [channel_axis(node), -1]
            return self._fit([pair for pair in zip(node.input[1:], axes, strict=False) if pair[0]], size)
        if node.op_type == "Mul":
            return self._fit([(value, -1) for value in node.input if value in self.fixed], size)
        before = next((value for value in node.input if value not in self.fixed), "")
        if node.op_type not in ("Add", "Relu") or not before:
            return f"{node.op_type} makes it, which no factor can be folded into"
        return self._through(node, before, size)

    def _through(self, node: NodeProto, before: str, size: int) -> list[tuple[str, int]] | str:
        """Fold into what comes before a sum with a constant, or a ReLU."""
        added = [(value, -1) for value in node.input if value in self.fixed]
        if node.op_type == "Add" and not added:
            return "Add of two tensors makes it, which no factor can be folded into"
        if len(self.readers[before]) > 1 or before in self.given:
            return f"others read '{before}' too"
        here, there = self._fit(added, size) if added else [], self._folded(before, size)
        return here if isinstance(here, str) else there if isinstance(there, str) else [*here, *there]

    def _fit(self, constants: Sequence[tuple[str, int]], size: int) -> list[tuple[str, int]] | str:
        """Check that constants can be divided: one value per channel, read once, float32."""
        if not constants:
            return "nothing constant is in what makes it"
        for name, axis in constants:
            tensor = self.fixed.get(name)
            if tensor is None:
                return f"'{name}' is computed by the graph"
            if len(self.readers[name]) > 1:
                return f"others read '{name}' too"
            if tensor.data_type != TensorProto.FLOAT or not tensor.dims or tensor.dims[axis] != size:
                return f"'{name}' is not one float32 value per channel"
            if axis == -1 and math.prod(tensor.dims) != size:
                return f"'{name}' differs between positions"
        return list(constants)
