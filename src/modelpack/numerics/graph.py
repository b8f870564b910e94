"""What an ONNX file holds: its tensors, operators, parameters, bytes and multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from modelpack import onnx_header
from modelpack.errors import StageError
from modelpack.numerics import onnxfile, products, stored
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.products import Shapes

_ELEMENTS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}
"""Element types that models may take and give."""

_LOOKED_UP = {"int8", "uint8", "uint4"}
"""Element types of tables whose rows are scaled after they are looked up."""

_PLUMBING = {"int64", "bool", "string"}
"""Element types of shapes and indices, which are no parameters."""

_NOTABLE = 0.05
"""Share of the parameters from which an element type counts for the precision."""

_INTEGER = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QAttention", "MatMulNBits"}
"""Operators on quantized values whose names do not say so."""

_SCALES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
    "BitShift": (1,),
}
"""Operator → positions of inputs that are scales, zero points or distances."""


@dataclass(frozen=True)
class Held:
    """What an initializer holds: its element type, and how many; codes that share a byte are counted each."""

    dtype: str
    elements: int


@dataclass(frozen=True)
class Layer:
    """One node that multiplies: its name, operator, weights and multiply-accumulates (None where unknown)."""

    name: str
    operator: str
    parameters: int
    dtype: str
    macs: int | None


@dataclass(frozen=True)
class Facts:
    """What an ONNX file holds.

    Attributes:
        opset: Version of the standard operators.
        domains: Versions of the others, by domain.
        inputs: Input name → shape and element type.
        outputs: The same for the outputs.
        operators: Operator → how many nodes, graphs inside nodes included.
        parameters: Elements of the weights; scales, zero points and shapes are not counted.
        tensor_bytes: Element type → bytes of all initializers.
        precision: Element types that hold a notable share of the parameters, joined by commas.
        macs: Multiply-accumulates of one run, as far as shapes are known.
        uncounted: Names of nodes that multiply but whose shapes are not known.
        layers: The nodes that multiply, in the graph's order.
    """

    opset: int
    domains: Mapping[str, int]
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    operators: Mapping[str, int]
    parameters: int
    tensor_bytes: Mapping[str, int]
    precision: str
    macs: int
    uncounted: tuple[str, ...]
    layers: tuple[Layer, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the facts as JSON types."""
        return {**asdict(self), "uncounted": list(self.uncounted), "layers": [asdict(item) for item in self.layers]}


def facts(model: ModelProto, sizes: Mapping[str, int] | None = None) -> Facts:
    """Describe a model.

    Args:
        model: Any ONNX model.
        sizes: Sizes of named dimensions; 1 where absent.
    """
    described = signature(model)
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in described["inputs"].items()}
    shapes = products.shapes(model, inputs, sizes or {})
    held = {item.name: item for inner in onnxfile.graphs(model.graph) for item in inner.initializer}
    packed = _packed(model.graph, held)
    tensors = {name: packed.get(name) or Held(_dtype(item), math.prod(item.dims)) for name, item in held.items()}
    layers = tuple(_layers(model, shapes, tensors))
    weights = _weights(model.graph, held, tensors)
    return Facts(
        opset=onnxfile.opset(model),
        domains={item.domain: item.version for item in model.opset_import if item.domain not in onnxfile.STANDARD},
        inputs=described["inputs"],
        outputs=described["outputs"],
        operators=operators(model),
        parameters=sum(item.elements for item in weights),
        tensor_bytes=_bytes(held, tensors),
        precision=_precision(weights),
        macs=sum(layer.macs or 0 for layer in layers),
        uncounted=tuple(layer.name for layer in layers if layer.macs is None),
        layers=layers,
    )


def operators(model: ModelProto) -> dict[str, int]:
    """Count the nodes of each operator, graphs inside nodes included."""
    return dict(sorted(Counter(node.op_type for inner in onnxfile.graphs(model.graph) for node in inner.node).items()))


def is_quantized(model: ModelProto) -> bool:
    """Whether any operator quantizes, or computes on quantized values."""
    names = operators(model)
    return any("quantize" in name.lower() or name.startswith("QLinear") or name in _INTEGER for name in names)


def signature(model: ModelProto) -> dict[str, dict[str, dict[str, Any]]]:
    """Read a model's inputs and outputs in the form of ``signature.json``; dimensions without a name get one.

    Raises:
        StageError: For an input that is no tensor, has no shape, or an element type that cannot be fed.
    """
    initialized = {item.name for item in model.graph.initializer}
    taken = [item for item in model.graph.input if item.name not in initialized]
    return {
        "inputs": {item.name: {**_tensor(item, required=True), "range": None} for item in taken},
        "outputs": {item.name: _tensor(item, required=False) for item in model.graph.output},
    }


def _tensor(value: ValueInfoProto, *, required: bool) -> dict[str, Any]:
    kind = value.type.tensor_type
    name = _ELEMENTS.get(kind.elem_type)
    if required and (name is None or not kind.HasField("shape")):
        lacks = "no shape" if name else "an element type that modelpack cannot feed"
        raise StageError(f"input '{value.name}' has {lacks}", then="declare it in the file that makes the model")
    shape = [_dimension(value.name, axis, size) for axis, size in enumerate(kind.shape.dim)]
    return {"shape": shape, "dtype": name or "float32"}


def _dimension(tensor: str, axis: int, size: Any) -> int | str:
    return onnx_header.dimension_of(tensor, axis, size.dim_value if size.HasField("dim_value") else 0, size.dim_param)


def _packed(graph: GraphProto, held: Mapping[str, TensorProto]) -> dict[str, Held]:
    """Find the tables of bytes that hold several codes each, and say what is in them."""
    shifted = {node.input[0] for inner in onnxfile.graphs(graph) for node in inner.node if node.op_type == "BitShift"}
    found = {}
    for inner in onnxfile.graphs(graph):
        for node in inner.node:
            place = {"MatMulNBits": 1, "Gather": 0, "GatherBlockQuantized": 0}.get(node.op_type)
            item = held.get(node.input[place]) if place is not None else None
            if item is None or item.data_type != TensorProto.UINT8:
                continue
            bits = 4 if node.op_type == "Gather" and node.output[0] in shifted else onnxfile.attribute(node, "bits", 8)
            elements = math.prod(item.dims) * 8 // bits
            if node.op_type == "MatMulNBits":  # what fills up the last block is no parameter
                elements = int(onnxfile.attribute(node, "N")) * int(onnxfile.attribute(node, "K"))
            if bits != 8 or node.op_type == "MatMulNBits":
                found[item.name] = Held(f"uint{bits}", elements)
    return found


def _layers(model: ModelProto, shapes: Shapes, tensors: Mapping[str, Held]) -> list[Layer]:
    layers = []
    reader = stored.Reader(model)
    for node in model.graph.node:
        if node.op_type not in products.RULES:
            continue
        sources = [tensor for name in node.input if (tensor := reader.origin(name).tensor) is not None]
        held = [tensors[tensor.name] for tensor in sources if tensor.name in tensors]
        largest = max(held, key=lambda item: item.elements, default=None)
        layers.append(
            Layer(
                name=node.name or (node.output[0] if node.output else ""),
                operator=node.op_type,
                parameters=largest.elements if largest is not None else 0,
                dtype=largest.dtype if largest is not None else "",
                macs=products.macs(node, shapes),
            )
        )
    return layers


def _weights(graph: GraphProto, held: Mapping[str, TensorProto], tensors: Mapping[str, Held]) -> list[Held]:
    """List what is no scale, zero point, shape or index."""
    scales: set[str] = set()
    looked_up: dict[str, set[str]] = {}
    for inner in onnxfile.graphs(graph):
        for node in inner.node:
            scales |= {node.input[place] for place in _SCALES.get(node.op_type, ()) if place < len(node.input)}
            if node.op_type == "Gather" and node.input[0] in tensors:
                looked_up.setdefault(node.input[1], set()).add(node.input[0])
    for names in looked_up.values():
        largest = max(names, key=lambda name: (tensors[name].elements, name))
        if tensors[largest].dtype in _LOOKED_UP:  # the others of its rows are their scales and zeros
            scales |= {name for name in names - {largest} if held[name].dims[:1] == held[largest].dims[:1]}
    return [item for name, item in tensors.items() if name not in scales and item.dtype not in _PLUMBING]


def _dtype(tensor: TensorProto) -> str:
    return _ELEMENTS.get(tensor.data_type) or str(TensorProto.DataType.Name(tensor.data_type)).lower()


def _bytes(held: Mapping[str, TensorProto], tensors: Mapping[str, Held]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, item in held.items():
        width = 0.5 if _dtype(item) in ("int4", "uint4") else _width(item)
        found[tensors[name].dtype] += math.ceil(math.prod(item.dims) * width)
    return dict(sorted(found.items()))


def _width(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return 0
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _precision(weights: Sequence[Held]) -> str:
    counted: Counter[str] = Counter()
    for item in weights:
        counted[item.dtype] += item.elements
    total = sum(counted.values())
    return ",".join(sorted(name for name, elements in counted.items() if elements >= _NOTABLE * total))
