"""Requests and answers of inference as messages, by the same rules as in JSON and binary data.

Source: kserve/open-inference-protocol, `inference_grpc.md`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..faults import Invalid
from ..open_inference import KINDS, Asked, blob, declared, selected
from ..tensors import from_array, from_bytes
from ..texts import from_prefixed, from_values
from .schema import message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..model import Answer, Model
    from ..signature import Signature, Tensor

FIELDS = {
    "bool_contents": ("bool", ("BOOL",)),
    "int_contents": ("int32", ("INT8", "INT16", "INT32")),
    "int64_contents": ("int64", ("INT64",)),
    "uint_contents": ("uint32", ("UINT8", "UINT16", "UINT32")),
    "uint64_contents": ("uint64", ("UINT64",)),
    "fp32_contents": ("float32", ("FP32",)),
    "fp64_contents": ("float64", ("FP64",)),
    "bytes_contents": ("object", ("BYTES",)),
}
"""The fields of typed contents: what numpy calls their values, and the datatypes that they carry."""
_FIELD = {datatype: field for field, (_, datatypes) in FIELDS.items() for datatype in datatypes}


def read(request: Any, signature: Signature) -> Asked:
    """Read a `ModelInferRequest`.

    Args:
        request: With raw contents for every input, or typed contents in every input.
        signature: What the model takes.

    Raises:
        Invalid: Naming the input and what was expected.
    """
    raw, feed = request.raw_input_contents, {}
    if raw and len(raw) != len(request.inputs):
        raise Invalid(f"'raw_input_contents' has {len(raw)} entries, and there are {len(request.inputs)} inputs")
    for at, entry in enumerate(request.inputs):
        said = {"name": entry.name or None, "shape": list(entry.shape), "datatype": entry.datatype}
        tensor, shape = declared(said, f"inputs[{at}]", signature)
        if tensor.name in feed:
            raise Invalid(f"input {tensor.name!r} is given twice")
        if "shared_memory_region" in entry.parameters:
            raise Invalid(f"input {tensor.name[:80]!r}: shared memory is not served, send the values")
        if raw and entry.HasField("contents"):
            raise Invalid(f"input {tensor.name[:80]!r}: has 'contents' beside 'raw_input_contents': send one of them")
        feed[tensor.name] = _raw(raw[at], tensor) if raw else _typed(entry, shape, tensor)
    outputs = [{"name": entry.name, "parameters": plain(entry.parameters)} for entry in request.outputs]
    return Asked(feed, request.id or None, selected({"outputs": outputs}, signature, binary=bool(raw)))


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters as values."""
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) if kind else None for name, kind in kinds.items()}


def _raw(values: bytes, tensor: Tensor) -> np.ndarray:
    shape = tuple(int(size) for size in tensor.shape)
    if tensor.textual:
        return from_prefixed(memoryview(values), shape, tensor)
    return from_bytes(memoryview(values), np.dtype(tensor.dtype), shape, tensor.name)


def _typed(entry: Any, shape: list[int], tensor: Tensor) -> np.ndarray:
    field = _FIELD.get(entry.datatype)
    if field is None:
        raise Invalid(f"input {tensor.name[:80]!r}: {entry.datatype} is sent in 'raw_input_contents' only")
    for other, _ in entry.contents.ListFields():
        if other.name != field:
            raise Invalid(f"input {tensor.name[:80]!r}: {entry.datatype} is sent in {field!r}, found {other.name!r}")
    values = getattr(entry.contents, field)
    if tensor.textual:
        return from_values(values, shape, tensor)
    if len(values) != math.prod(shape):
        raise Invalid(f"input {tensor.name[:80]!r}: shape {shape} takes {math.prod(shape)} values, got {len(values)}")
    return from_array(np.fromiter(values, FIELDS[field][0], len(values)).reshape(shape), tensor)


def write(asked: Asked, answer: Answer, model: Model) -> Any:
    """Write a `ModelInferResponse`: raw when one output is asked for raw or is FP16, which has no typed form."""
    response: Any = message("inference.ModelInferResponse")(
        model_name=model.name, model_version=model.version, id=asked.id or ""
    )
    arrays = {name: answer.outputs[name] for name in asked.outputs}
    raw = any(asked.outputs.values()) or any(array.dtype == np.float16 for array in arrays.values())
    for name, array in arrays.items():
        datatype = KINDS[array.dtype]
        entry = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(blob(array))
        else:
            getattr(entry.contents, _FIELD[datatype]).extend(_listed(array))
    return response


def _listed(array: np.ndarray) -> list[Any]:
    values: list[Any] = array.reshape(-1).tolist()
    return (
        [value.encode() if isinstance(value, str) else value for value in values] if array.dtype == object else values
    )
