"""ONNX files: read whole, kept tidy, written so that equal graphs have equal bytes."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
LIMIT = 2_000_000_000
"""Bytes above which the tensors go to a second file; protobuf messages end at 2 GiB."""

FEW = 1024
"""Values of a tensor up to which they may tell shapes."""

IR_VERSION = 8
"""Version of the file format that belongs to opset 15 and later."""

STANDARD = ("", "ai.onnx")
"""Names of the standard operators' domain."""


def read(path: Path) -> ModelProto:
    """Read an ONNX file with its external tensors.

    Raises:
        StageError: When it is no ONNX file, or a file of tensors is missing.
    """
    try:
        model = onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise StageError(f"cannot be read as an ONNX file: {runtime.reason(error)}", where=str(path)) from error
    if not model.graph.node:
        raise StageError("holds no ONNX graph", where=str(path))
    return model


def write(model: ModelProto, out: Path) -> Path:
    """Write ``model.onnx`` into a directory, with ``model.onnx.data`` beside it above `LIMIT`.

    Raises:
        StageError: When the graph cannot be encoded.
    """
    path = out / NAME
    if size(model) > LIMIT:
        # A copy, because saving empties the tensors that it moves.
        onnx.save(copied(model), str(path), save_as_external_data=True, location=DATA_NAME, size_threshold=1024)
    else:
        path.write_bytes(encode(model))
    return path


def encode(model: ModelProto) -> bytes:
    """Give a model's bytes, equal for equal models.

    Raises:
        StageError: When it is larger than one message may be.
    """
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise StageError(f"the graph cannot be encoded: {runtime.reason(error)}") from error


@contextlib.contextmanager
def loadable(model: ModelProto) -> Iterator[Path | bytes]:
    """Give what onnxruntime can open: the model's bytes, or a temporary file for a model above `LIMIT`."""
    if size(model) <= LIMIT:
        yield encode(model)
        return
    with tempfile.TemporaryDirectory() as place:
        yield write(model, Path(place))


def size(model: ModelProto) -> int:
    """Count a model's bytes, whether or not one message may hold them."""
    try:
        return int(model.ByteSize())
    except EncodeError:
        parts = ((*graph.node, *graph.initializer, *graph.sparse_initializer) for graph in graphs(model.graph))
        return sum(part.ByteSize() for some in parts for part in some)


def copied(model: ModelProto) -> ModelProto:
    """Copy a model, so that a caller's stays as it is."""
    twin = ModelProto()
    twin.CopyFrom(model)
    return twin


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Walk a graph and the graphs inside its nodes (``If``, ``Loop``, ``Scan``), outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def strip(model: ModelProto) -> None:
    """Remove what exporters leave for people: documentation, traces of source files, scopes. Changes `model`."""
    model.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        _strip_nodes(graph.node)
        for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            value.doc_string = ""
            del value.metadata_props[:]


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""


def unshaped(model: ModelProto) -> ModelProto:
    """Copy a model without the shapes that it stores of intermediate values."""
    model = copied(model)
    for graph in graphs(model.graph):
        del graph.value_info[:]
    return model


def outline(model: ModelProto) -> ModelProto:
    """Copy a model without the values of its large initializers: all that follows from shapes, in little memory."""
    twin = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    twin.graph.MergeFrom(
        GraphProto(
            name=graph.name,
            node=graph.node,
            input=graph.input,
            output=graph.output,
            value_info=graph.value_info,
            sparse_initializer=graph.sparse_initializer,
            initializer=[_hollow(item) for item in graph.initializer],
        )
    )
    return twin


def _hollow(tensor: TensorProto) -> TensorProto:
    """Leave a tensor's values out if they are too many to be a shape, axes or bounds."""
    if math.prod(tensor.dims) <= FEW:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def infer(model: ModelProto) -> ModelProto:
    """Replace every stored intermediate shape by freshly inferred ones, where inference knows them.

    Stale entries are worse than none: they make correct graphs look inconsistent to the next tool.
    """
    model = unshaped(model)
    bare = outline(model)
    if size(bare) > LIMIT:
        return model
    try:
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return model  # inference only adds information; `check` judges the graph itself
    for graph, known in zip(graphs(model.graph), graphs(found.graph), strict=True):
        graph.value_info.extend(known.value_info)
        del graph.output[:]
        graph.output.extend(known.output)
    return model


def check(model: ModelProto) -> None:
    """Hold a model against the ONNX specification.

    Raises:
        StageError: With the checker's reason.
    """
    if size(model) > LIMIT:
        return
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # its complaint may quote a damaged name
        raise StageError(f"the ONNX checker refuses the graph: {runtime.reason(error)}") from error


def modernize(model: ModelProto) -> None:
    """Raise a model's format version to one where weights need not be inputs. Changes `model`."""
    model.ir_version = max(model.ir_version, IR_VERSION)


def opset(model: ModelProto) -> int:
    """Give the version of the standard operators that a model uses."""
    return max((item.version for item in model.opset_import if item.domain in STANDARD), default=1)


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Map names to tensors for a graph's initializers, those that callers may replace (also inputs) left out."""
    replaceable = {item.name for item in graph.input}
    return {item.name: item for item in graph.initializer if item.name not in replaceable}


def array(tensor: TensorProto) -> NDArray[np.generic]:
    """Give an initializer's values."""
    return numpy_helper.to_array(tensor)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Give one attribute of a node, or the default."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Map every value to the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Map every value to the nodes that read it, a node once per value, graphs inside nodes included."""
    found: dict[str, list[NodeProto]] = {}
    for inner in graphs(graph):
        for node in inner.node:
            for name in dict.fromkeys(node.input):
                if name:
                    found.setdefault(name, []).append(node)
    return found


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever they are made, read or described. Changes `graph`."""
    for inner in graphs(graph):
        for item in (*inner.input, *inner.output, *inner.initializer, *inner.value_info):
            item.name = names.get(item.name, item.name)
        for node in inner.node:
            for values in (node.input, node.output):
                for place, name in enumerate(values):
                    values[place] = names.get(name, name)


def drop_unread(graph: GraphProto) -> None:
    """Remove initializers that nothing reads. Changes `graph`."""
    read = set(consumers(graph)) | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in read]
    if len(kept) < len(graph.initializer):
        # Copied out first: protobuf frees the removed messages.
        twins = [TensorProto.FromString(item.SerializeToString()) for item in kept]
        del graph.initializer[:]
        graph.initializer.extend(twins)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let a graph have these nodes instead of its own, which may be among them. Changes `graph`."""
    # Copied out first: protobuf frees the removed messages.
    twins = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(twins)
