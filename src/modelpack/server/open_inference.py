"""Tensors in the words of the Open Inference Protocol v2, as JSON and as binary data behind it.

Sources: kserve/open-inference-protocol, `inference_rest.md`; Triton's `extension_binary_data.md`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Invalid
from .rows import dump, parse, plain
from .signature import TEXTS, Tensor, quote
from .tensors import from_bytes, from_flat
from .texts import from_prefixed, to_prefixed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model import Answer, Model
    from .signature import Signature

DATATYPES = {
    "BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    **{f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DATATYPES.items()} | dict.fromkeys((*TEXTS, "object"), "BYTES")
"""What the protocol calls each element type that is served; texts and bytes are objects to numpy."""
KINDS = {np.dtype(dtype): name for name, dtype in DATATYPES.items()} | {np.dtype(object): "BYTES"}
"""The same by numpy's types, whose own names numpy makes anew each time."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for: inputs, an id to give back, and which outputs, each as binary data or not."""

    feed: dict[str, np.ndarray]
    id: str | None
    outputs: Mapping[str, bool]


def read(body: bytes, header: str, signature: Signature) -> Asked:
    """Read a request.

    Args:
        body: JSON, then the binary data of its inputs in their order.
        header: How many bytes are JSON; all of them when empty, and with 0 the body is the only input as raw values.
        signature: What the model takes.

    Raises:
        Invalid: Naming the place and what was expected.
    """
    view = memoryview(body)
    if not header:
        return _asked(parse(view), memoryview(b""), signature)
    if not re.fullmatch(r"\d{1,12}", header) or int(header) > len(body):
        raise Invalid(f"Inference-Header-Content-Length is {header[:40]!r}, and the body has {len(body)} bytes")
    if int(header) == 0:
        return Asked(_raw(view, signature), None, dict.fromkeys(signature.outputs, True))
    return _asked(parse(view[: int(header)]), view[int(header) :], signature)


def _asked(content: Any, blobs: memoryview, signature: Signature) -> Asked:
    if not isinstance(content, dict):
        raise Invalid('expected a JSON object: {"inputs": [...]}')
    feed: dict[str, np.ndarray] = {}
    for at, entry in enumerate(_objects(content, "inputs")):
        tensor, shape = declared(entry, f"inputs[{at}]", signature)
        if tensor.name in feed:
            raise Invalid(f"input {tensor.name!r} is given twice")
        feed[tensor.name], used = _values(entry, tensor, shape, blobs)
        blobs = blobs[used:]
    if blobs:
        raise Invalid(f"{len(blobs)} bytes follow the last input")
    text = content.get("id")
    if not isinstance(text, (str, type(None))):
        raise Invalid("'id' is not a string")
    whole = _parameters(content, "the request").get("binary_data_output", False)
    return Asked(feed, text, selected(content, signature, binary=_flag(whole, "binary_data_output")))


def _objects(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Invalid(f"{key!r} is not an array of objects")
    return entries


def declared(entry: Mapping[str, Any], place: str, signature: Signature) -> tuple[Tensor, list[int]]:
    """Read what an input says of itself, its values apart: the tensor in the element type that is sent, and its shape.

    Raises:
        Invalid: Naming the place and what was expected.
    """
    name, shape, datatype = (entry.get(key) for key in ("name", "shape", "datatype"))
    if not isinstance(name, str):
        raise Invalid(f"{place} has no name")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise Invalid(f"input {name[:80]!r}: 'shape' is not an array of sizes")
    if len(shape) > 32:
        raise Invalid(f"input {name[:80]!r} has {len(shape)} dimensions, and 32 is the most")
    known = signature.inputs.get(name)
    if known is not None and (known.textual or datatype == "BYTES"):
        if datatype != NAMES[known.dtype]:
            wanted = NAMES[known.dtype]
            raise Invalid(f"input {name!r}: the datatype is {str(datatype)[:40]!r}, expected {wanted!r}")
        return Tensor(name, tuple(shape), known.dtype), shape
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise Invalid(
            f"input {name[:80]!r}: the datatype is {str(datatype)[:40]!r}, expected one of {quote(DATATYPES)}"
        )
    return Tensor(name, tuple(shape), DATATYPES[datatype]), shape


def _values(entry: Mapping[str, Any], tensor: Tensor, shape: list[int], blobs: memoryview) -> tuple[np.ndarray, int]:
    """Give the tensor, and how many bytes of the binary data it took."""
    parameters = _parameters(entry, f"input {tensor.name[:80]!r}")
    if "shared_memory_region" in parameters:
        raise Invalid(f"input {tensor.name[:80]!r}: shared memory is not served, send the values")
    size, data = parameters.get("binary_data_size"), entry.get("data")
    if (size is None) == (data is None):
        raise Invalid(f"input {tensor.name[:80]!r}: expected either 'data' or the parameter 'binary_data_size'")
    if size is None:
        if not isinstance(data, list):
            raise Invalid(f"input {tensor.name[:80]!r}: 'data' is not an array")
        return from_flat(data, shape, tensor), 0
    if type(size) is not int or not 0 <= size <= len(blobs):
        raise Invalid(f"input {tensor.name[:80]!r}: 'binary_data_size' is {size}, and {len(blobs)} bytes are left")
    if tensor.textual:
        return from_prefixed(blobs[:size], tuple(shape), tensor), size
    return from_bytes(blobs[:size], np.dtype(tensor.dtype), tuple(shape), tensor.name), size


def _parameters(holder: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Invalid(f"{place}: 'parameters' is not an object")
    return parameters


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{name!r} is not true or false")
    return value


def selected(content: Mapping[str, Any], signature: Signature, *, binary: bool) -> dict[str, bool]:
    """Give the outputs that are asked for, all when none is named, and whether each is binary data.

    Raises:
        Invalid: For an output that the model lacks, or a form that is not served.
    """
    wanted: dict[str, bool] = {}
    for entry in _objects(content, "outputs") if content.get("outputs") else ():
        name = entry.get("name")
        if not isinstance(name, str) or name not in signature.outputs:
            raise Invalid(f"unknown output {str(name)[:80]!r}: the model's outputs are {quote(signature.outputs)}")
        if name in wanted:
            raise Invalid(f"output {name!r} is asked for twice")
        parameters = _parameters(entry, f"output {name!r}")
        for other in ("classification", "shared_memory_region"):
            if parameters.get(other):
                raise Invalid(f"output {name!r}: {other!r} is not served")
        wanted[name] = _flag(parameters.get("binary_data", binary), "binary_data")
    return wanted or dict.fromkeys(signature.outputs, binary)


def _raw(values: memoryview, signature: Signature) -> dict[str, np.ndarray]:
    """Read the only input from nothing but its values, whose number tells the only size that is free."""
    tensor = signature.only
    free = [size for size in tensor.shape if isinstance(size, str)] if tensor else []
    if tensor is None or len(free) > 1:
        raise Invalid("a body without JSON is only for models with one input and at most one dynamic dimension")
    if tensor.textual:
        return {tensor.name: _lone(values, tensor)}
    dtype = np.dtype(tensor.dtype)
    fixed = math.prod(size for size in tensor.shape if isinstance(size, int))
    count = len(values) // (fixed * dtype.itemsize or 1)
    shape = tuple(count if isinstance(size, str) else size for size in tensor.shape)
    return {tensor.name: from_bytes(values, dtype, shape, tensor.name)}


def _lone(values: memoryview, tensor: Tensor) -> np.ndarray:
    """Read texts or bytes, each behind its length, as many as there are."""
    count, place = 0, 0
    while place + 4 <= len(values):
        place += 4 + int.from_bytes(values[place : place + 4], "little")
        count += 1
    return from_prefixed(values, (count,), tensor)


def write(asked: Asked, answer: Answer, model: Model) -> tuple[bytes, int | None]:
    """Write an answer.

    Returns:
        The body, and how many of its bytes are JSON: None when all are.
    """
    entries, blobs = [], []
    for name, binary in asked.outputs.items():
        array = answer.outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": KINDS[array.dtype], "shape": list(array.shape)}
        if binary:
            blobs.append(blob(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = plain(array.reshape(-1))
        entries.append(entry)
    given = {} if asked.id is None else {"id": asked.id}
    head = dump({"model_name": model.name, "model_version": model.version, **given, "outputs": entries})
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def blob(array: np.ndarray) -> bytes:
    """Write a tensor as binary data."""
    if array.dtype == object:
        return to_prefixed(array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
