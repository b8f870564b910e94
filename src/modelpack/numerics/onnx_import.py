"""ONNX files from elsewhere: checked, opened, tried once, and written as an artifact's payload."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper
from pydantic import ValidationError

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import rows, runtime, signatures
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TWO_GIGABYTES = 2**31 - 2**20


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
        Figures about the model: ``parameters``.

    Raises:
        StageError: When the file is no sound ONNX model, or the declared inputs do not fit or do not run.
    """
    model = _read(path)
    graph_inputs = _inputs(model, str(path))
    declared = _compared(graph_inputs, inputs, str(path)) if inputs is not None else graph_inputs
    described = {value.name: _described(value, str(path)) for value in model.graph.output}
    for name in outputs or ():
        if name not in described:
            raise StageError(f"the graph has no output '{name}'", where=str(path), then=did_you_mean(name, described))
    _store(model, path, out / "model.onnx")
    (out / "signature.json").write_bytes(signatures.encode(declared, described))
    try:
        runtime.execute(runtime.session(out / "model.onnx"), rows.sample(declared, 1, seed))
    except StageError as error:
        raise StageError(f"the model does not run on inputs as declared: {error.what}", where=str(path)) from error
    return {"parameters": sum(_elements(tensor) for tensor in model.graph.initializer)}


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise StageError(f"not an ONNX file: {str(error).splitlines()[0]}", where=str(path)) from error
    if not model.graph.output:
        raise StageError("not an ONNX model: it has no outputs", where=str(path))
    _contain(model, path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise StageError(f"the ONNX checker refuses it: {runtime.reason(error)}", where=str(path)) from error
    return model


def _external(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    for tensor in external_data_helper._get_all_tensors(model):  # noqa: SLF001  the only walk over subgraphs too
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor, next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _contain(model: onnx.ModelProto, path: Path) -> None:
    """Refuse external tensors outside the model's directory: a model file must not make us read any other file."""
    home = path.resolve().parent
    for tensor, location in _external(model):
        target = (home / location).resolve()
        if not location or not target.is_relative_to(home):
            raise StageError(
                f"tensor '{tensor.name}' is kept in '{location}', outside the model's directory", where=str(path)
            )
        if not target.is_file():
            raise StageError(f"tensor '{tensor.name}' is kept in '{location}', which is missing", where=str(path))


def _store(model: onnx.ModelProto, path: Path, target: Path) -> None:
    if not any(True for _ in _external(model)):
        shutil.copyfile(path, target)
        return
    external_data_helper.load_external_data_for_model(model, str(path.resolve().parent))
    if model.ByteSize() < _TWO_GIGABYTES:
        onnx.save_model(model, target)
    else:
        onnx.save_model(
            model, target, save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data"
        )


def _inputs(model: onnx.ModelProto, where: str) -> dict[str, TensorSpec]:
    # Before IR version 4, initializers had to be listed among the inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    found = {value.name: _described(value, where) for value in model.graph.input if value.name not in weights}
    if not found:
        raise StageError("the graph reads no input", where=where)
    try:
        return {name: TensorSpec.model_validate(spec) for name, spec in found.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(f"an input cannot be described: {first['msg']} {first['input']!r}", where=where) from error


def _described(value: onnx.ValueInfoProto, where: str) -> dict[str, Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise StageError(f"'{value.name}' is a {(kind or 'nothing').removesuffix('_type')}, not a tensor", where=where)
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, ValueError, TypeError):
        dtype = "object"
    if dtype in ("object", "bfloat16") or tensor.elem_type == onnx.TensorProto.STRING:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise StageError(f"'{value.name}' has the element type {name}, which numpy lacks", where=where)
    if not tensor.HasField("shape"):
        return {"shape": [], "dtype": dtype}
    return {"shape": [_size(value.name, axis, size) for axis, size in enumerate(tensor.shape.dim)], "dtype": dtype}


def _size(name: str, axis: int, size: onnx.TensorShapeProto.Dimension) -> int | str:
    if size.HasField("dim_value") and size.dim_value > 0:
        return int(size.dim_value)
    # Exporters write expressions such as "s0 + 1", which name a dimension but are no names.
    words = re.sub(r"\W+", "_", size.dim_param or f"{name}_{axis}", flags=re.ASCII).strip("_")
    return words if words[:1].isalpha() else f"d_{words}"


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


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
