"""ONNX files from elsewhere: checked, opened, tried once, and written as an artifact's payload."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper
from pydantic import ValidationError

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import graph, onnxfile, rows, runtime, signatures
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def write(
    out: Path, path: Path, inputs: Mapping[str, TensorSpec] | None, outputs: tuple[str, ...] | None, seed: int
) -> dict[str, int]:
    """Import an ONNX file as ``model.onnx`` and ``signature.json``.

    Args:
        out: Directory to fill.
        path: The user's file; its external tensors must lie beside or below it.
        inputs: What the recipe declares, compared with the graph; None takes the graph's word.
        outputs: Names that the graph must give; None when any will do.
        seed: Seed of the trial's inputs.

    Returns:
        Figures about the model: ``parameters`` and ``mac_count``.

    Raises:
        StageError: When the file is no sound ONNX model, or the declared inputs do not fit or do not run.
    """
    model, external = read(path)
    described = graph.signature(model)
    known = specs(described["inputs"], str(path))
    declared = _compared(known, inputs, str(path)) if inputs is not None else known
    for name in outputs or ():
        if name not in described["outputs"]:
            raise StageError(
                f"the graph has no output '{name}'", where=str(path), then=did_you_mean(name, described["outputs"])
            )
    # Where the recipe renames or fixes a dimension, the outputs follow.
    renamed = {a: b for name in declared for a, b in zip(known[name].shape, declared[name].shape, strict=True)}
    for value in described["outputs"].values():
        value["shape"] = [renamed.get(size, size) if isinstance(size, str) else size for size in value["shape"]]
    if external:
        onnxfile.write(onnxfile.copied(model), out)
    else:
        shutil.copyfile(path, out / onnxfile.NAME)
    (out / "signature.json").write_bytes(signatures.encode(declared, described["outputs"]))
    try:
        sample = rows.sample(declared, 1, seed)
        runtime.execute(runtime.session(out / onnxfile.NAME), sample, seconds=runtime.PATIENCE)
    except StageError as error:
        raise StageError(f"the model does not run on inputs as declared: {error.what}", where=str(path)) from error
    facts = graph.facts(model)
    return {"parameters": facts.parameters, "mac_count": facts.macs}


def read(path: Path) -> tuple[onnx.ModelProto, bool]:
    """Read a file that is not trusted, with its external tensors.

    Args:
        path: The file; its external tensors must lie beside or below it.

    Returns:
        The model, and whether it has external tensors.

    Raises:
        StageError: When it is no sound ONNX model, or reaches for tensors elsewhere.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise StageError("cannot be read as an ONNX file: its bytes are no protocol buffer", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise StageError(f"cannot be read as an ONNX file: {runtime.reason(error)}", where=str(path)) from error
    if not model.graph.output:
        raise StageError("holds no ONNX graph with outputs", where=str(path))
    if not all(isinstance(name, str) for name in _names(model)):
        raise StageError("a name in it is no UTF-8 text", where=str(path))
    external = _contain(model, path)
    if external:
        try:
            external_data_helper.load_external_data_for_model(model, str(path.resolve().parent))
        except (onnx.checker.ValidationError, OSError, ValueError) as error:
            raise StageError(
                f"its external tensors cannot be read: {runtime.reason(error)}", where=str(path)
            ) from error
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type" or value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            what = (kind or "unknown type").removesuffix("_type") if kind != "tensor_type" else "tensor of texts"
            raise StageError(f"'{value.name}' is a {what}; only tensors of numbers are served", where=str(path))
    try:
        onnxfile.check(model)
    except StageError as error:
        raise StageError(error.what, where=str(path)) from error
    return model, external


def _names(model: onnx.ModelProto) -> Iterator[object]:
    """Walk all names; one that is no text comes out as bytes."""
    for inner in onnxfile.graphs(model.graph):
        for node in inner.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for item in (*inner.input, *inner.output, *inner.initializer, *inner.value_info):
            yield item.name


def _external(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Walk the tensors kept in other files: name and file."""
    for inner in onnxfile.graphs(model.graph):
        constants = (item for node in inner.node for attribute in node.attribute for item in _held(attribute))
        for tensor in (*inner.initializer, *constants):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
                yield tensor.name, location


def _held(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    yield from (attribute.t, *attribute.tensors)


def _contain(model: onnx.ModelProto, path: Path) -> bool:
    """Refuse external tensors outside the model's directory: a model file must not make us read any other file."""
    home = path.resolve().parent
    places = list(_external(model))
    for name, location in places:
        # No system allows NUL in a path, and Python raises on it.
        target = (home / location.replace("\0", "")).resolve()
        if not location or "\0" in location or not target.is_relative_to(home):
            raise StageError(f"tensor '{name}' is kept in '{location}', outside the model's directory", where=str(path))
        if not target.is_file():
            raise StageError(f"tensor '{name}' is kept in '{location}', which is missing", where=str(path))
    return bool(places)


def specs(described: Mapping[str, object], where: str) -> dict[str, TensorSpec]:
    """Read the inputs that a graph describes.

    Raises:
        StageError: When there are none, or one cannot be fed.
    """
    if not described:
        raise StageError("the graph reads no input", where=where)
    try:
        return {name: TensorSpec.model_validate(spec) for name, spec in described.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(f"an input cannot be described: {first['msg']} {first['input']!r}", where=where) from error


def _compared(graph: Mapping[str, TensorSpec], declared: Mapping[str, TensorSpec], where: str) -> dict[str, TensorSpec]:
    """Check that the recipe's inputs are the graph's, and give them in the graph's order."""
    for name in declared:
        if name not in graph:
            raise StageError(f"the graph has no input '{name}'", where=where, then=did_you_mean(name, graph))
    for name, known in graph.items():
        if name not in declared:
            raise StageError(f"the graph also reads '{name}', which `inputs:` does not declare", where=where)
        spec = declared[name]
        fits = len(spec.shape) == len(known.shape) and all(
            isinstance(b, str) or a == b for a, b in zip(spec.shape, known.shape, strict=True)
        )
        if not fits or spec.dtype != known.dtype:
            raise StageError(
                f"input '{name}' is {known.dtype} {list(known.shape)} in the graph, "
                f"{spec.dtype} {list(spec.shape)} in the recipe",
                where=where,
                then="leave `inputs:` out to take them from the graph",
            )
    return {name: declared[name] for name in graph}
