"""Where a torch model is rounded: the places that static quantization marks in its ONNX graph, found in its trace.

`qdq.marks` knows what onnxruntime must find for integer kernels, and is asked; nothing about fusion is said twice. A
layer whose values or weights have no counterpart in torch stays float, with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelpack.numerics import onnxfile
from modelpack.numerics.fake_quantization.quantizers import Places, Spot
from modelpack.numerics.qat.correspondence import Correspondence
from modelpack.numerics.quantization import kernels, layers, qdq
from modelpack.numerics.quantization.rewriting.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import GraphProto
    from torch import nn

    from modelpack.numerics.export import Exported
    from modelpack.numerics.qat.correspondence import Weights
    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Found:
    """Where a model is rounded.

    Attributes:
        places: The places.
        layers: Every layer of the graph, with the reason where it stays float.
        lost: Values between layers that torch has not; because of them, operators without weights stay float.
        biases: Bias → ONNX value and weights whose products it is added to.
        adrift: Layers that add a bias which training does not leave on the grid of its products, since it is no
            parameter, or is added to products of several grids.
    """

    places: Places
    layers: tuple[Layer, ...]
    lost: tuple[str, ...] = ()
    biases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    adrift: tuple[str, ...] = ()


def find(module: nn.Module, exported: Exported, exclude: Sequence[str], feed: Feed) -> Found:
    """Find the places to round.

    Args:
        module: The float module, folded.
        exported: Its trace and graph.
        exclude: Patterns of names of layers to leave alone.
        feed: A few rows.

    Raises:
        StageError: When a pattern matches no layer.
    """
    model, _ = prepare(exported.model)
    both = Correspondence(module, exported, model)
    known = layers.choose(model, "static", None, exclude)
    weights = both.weights(known)
    known = [_with_weights(layer, weights) for layer in known]
    flows, apart = not layers.has_attention(model.graph), set[str]()
    while True:
        chosen = [layer.name for layer in known if layer.quantized and layer.operator != "Gather"]
        marked = qdq.marks(model, chosen, neighbours=flows)
        spots, lost = _spots(both, marked, weights, feed)
        if not lost:
            break
        stranded = _stranded(model.graph, chosen, lost)
        if stranded:
            known = [_left(layer, stranded[layer.name]) if layer.name in stranded else layer for layer in known]
        else:
            flows, apart = False, lost
    held = [weights[layer.name] for layer in known if layer.quantized]
    pairs = tuple(sorted({(item.input, item.path) for item in held}))
    places = Places(onnxfile.opset(exported.model), pairs, spots, {item.path: item.axis for item in held})
    products = _products(held)
    biases = {name: found.pop() for name, found in products.items() if len(found) == 1}
    settled = {name for name, item in weights.items() if item.bias in biases}
    adding = [node.name for node in model.graph.node if node.name in chosen and node.input[2:] not in ([], [""])]
    return Found(
        places, tuple(known), tuple(sorted(apart)), biases, tuple(name for name in adding if name not in settled)
    )


def _products(held: Iterable[Weights]) -> dict[str, set[tuple[str, str]]]:
    """Give the value and weights of all products that each bias is added to."""
    found: dict[str, set[tuple[str, str]]] = {}
    for item in held:
        if item.bias is not None:
            found.setdefault(item.bias, set()).add((item.input, item.path))
    return found


def _with_weights(layer: Layer, weights: Mapping[str, Weights]) -> Layer:
    """Leave a layer float whose weights cannot be rounded in torch as they are in ONNX."""
    if not layer.quantized:
        return layer
    held = weights.get(layer.name)
    if held is None:
        return _left(layer, "its weights are no parameter of the module, or are one in another form")
    first = next(item for item in weights.values() if item.path == held.path)
    return layer if first.axis == held.axis else _left(layer, "shares its weights along another axis of channels")


def _left(layer: Layer, reason: str) -> Layer:
    return replace(layer, reason=reason)


def _spots(
    both: Correspondence, marked: Marks, weights: Mapping[str, Weights], feed: Feed
) -> tuple[dict[str, Spot], set[str]]:
    """Find each marked value in the trace; gives the places and the values that are not there."""
    names = sorted({*marked.measured, *marked.carried})
    lost = both.differing(names, feed)
    lost -= {name for name in lost if _only_moves_on(both.model.graph, name, marked, lost)}
    spots = {}
    for name in names:
        if name in lost or name not in both.nodes:
            continue
        readers = None
        if name not in marked.made:
            reading = [node for node in both.model.graph.node if node.name in marked.readers and name in node.input]
            given = {value for node in reading for value in node.output}
            readers = both.readers(name, given, {weights[n.name].path for n in reading if n.name in weights})
        if readers == ():
            lost.add(name)
        spots[name] = Spot(both.nodes[name].name, readers, marked.carried.get(name, name))
    return spots, lost


def _only_moves_on(graph: GraphProto, name: str, marked: Marks, lost: set[str]) -> bool:
    """Whether a value that torch has not is read only to be moved to places where torch rounds it to the same grid."""
    outputs = [value for node in graph.node if name in node.input for value in node.output]
    return bool(outputs) and all(marked.carried.get(value) == name and value not in lost for value in outputs)


def _stranded(graph: GraphProto, chosen: Sequence[str], lost: set[str]) -> dict[str, str]:
    """Give the layers that a lost value belongs to, with the reason why they stay float."""
    readers, fixed = onnxfile.consumers(graph), onnxfile.constants(graph)
    given = {item.name for item in graph.output}
    found = {}
    for node in graph.node:
        if node.name in chosen:
            missing = lost & {node.input[0], node.output[0], kernels.absorbed(node, readers, fixed, given)}
            if missing:
                found[node.name] = f"torch has no value like '{min(missing)}', which would be rounded"
    return found
