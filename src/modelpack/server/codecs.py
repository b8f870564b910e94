"""The encodings of `POST /predict`: rows and columns in JSON, raw tensors, and npy files."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .faults import Refused
from .signature import quote
from .tensors import check_ranges, from_array, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .signature import Signature, Tensor

JSON, RAW, NPY = "application/json", "application/octet-stream", "application/x-npy"
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_KEYS = ("instances", "inputs", "parameters")


@dataclass(frozen=True)
class Call:
    """What a request asks for: the model's inputs, and the form of the answer (rows, columns or tensor)."""

    feed: dict[str, np.ndarray]
    form: str


def decode_json(body: bytes, _header: Callable[[str], str], signature: Signature) -> Call:
    """Read `{"instances": [...]}` or `{"inputs": {...}}`."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}" if body else "the body is empty") from None
    if not isinstance(content, dict):
        raise Refused(400, 'expected a JSON object: {"instances": [...]} or {"inputs": {...}}')
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise Refused(400, f"unknown key {quote(sorted(unknown)[:3])}: expected one of {quote(_KEYS)}")
    if ("instances" in content) == ("inputs" in content):
        raise Refused(400, "expected either 'instances' (rows) or 'inputs' (columns), exactly one of them")
    if not isinstance(content.get("parameters", {}), dict):
        raise Refused(400, "'parameters' is not an object")
    form = "rows" if "instances" in content else "columns"
    columns = (
        _rows(content["instances"], signature) if form == "rows" else _columns(content["inputs"], signature, "'inputs'")
    )
    return Call({name: from_json(columns[name], tensor) for name, tensor in signature.inputs.items()}, form)


def _rows(rows: Any, signature: Signature) -> Mapping[str, Any]:
    if not isinstance(rows, list):
        raise Refused(400, "'instances' is not an array of rows")
    if not rows:
        raise Refused(400, "'instances' is empty: send at least one row")
    if not signature.rowwise:
        raise Refused(400, 'this model has a tensor without rows: send columns, {"inputs": {...}}')
    if signature.only is not None and not isinstance(rows[0], dict):
        return {signature.only.name: rows}
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Refused(400, f"instances[{index}] is not an object with the inputs {quote(signature.inputs)}")
        _columns(row, signature, f"instances[{index}]")
    return {name: [row[name] for row in rows] for name in signature.inputs}


def _columns(columns: Any, signature: Signature, place: str) -> Mapping[str, Any]:
    if not isinstance(columns, dict):
        if signature.only is not None:
            return {signature.only.name: columns}
        raise Refused(400, f"{place} is not an object with the inputs {quote(signature.inputs)}")
    for name in columns:
        if name not in signature.inputs:
            raise Refused(
                400, f"{place}: unknown input {name[:80]!r}: the model's inputs are {quote(signature.inputs)}"
            )
    for name, tensor in signature.inputs.items():
        if name not in columns:
            raise Refused(400, f"{place}: input {name!r} is missing (shape {tensor.wanted}, {tensor.dtype})")
    return columns


def decode_raw(body: bytes, header: Callable[[str], str], signature: Signature) -> Call:
    """Read a little-endian tensor whose shape is in the header `X-Shape`, such as `1,784`."""
    tensor = _single(signature, RAW)
    text = header("x-shape")
    if not re.fullmatch(r"\s*\d{1,12}(\s*,\s*\d{1,12}){0,31}\s*", text):
        raise Refused(
            400, f"expected the header X-Shape with the sizes of {tensor.wanted}, such as 1,784; got {text!r}"
        )
    shape = tuple(int(part) for part in text.split(","))
    array = _view(body, 0, np.dtype(tensor.dtype), shape, tensor)
    check_ranges(array, tensor)
    return Call({tensor.name: array}, "tensor")


def decode_npy(body: bytes, _header: Callable[[str], str], signature: Signature) -> Call:
    """Read an npy file; its header is checked against the body's size, and nothing is ever unpickled."""
    tensor = _single(signature, NPY)
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = parse(stream, max_header_size=4096)
    except Exception as error:  # noqa: BLE001 - numpy evaluates the header with Python's parser, which raises anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise Refused(400, f"the body is not an npy file of version 1.0 or 2.0: {reason}") from None
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise Refused(400, f"input {tensor.name!r}: expected {tensor.dtype}, got an npy file of {dtype.name}")
    array = _view(body, stream.tell(), dtype, shape[::-1] if fortran else shape, tensor)
    return Call({tensor.name: from_array(array.T if fortran else array, tensor)}, "tensor")


def _single(signature: Signature, media: str) -> Tensor:
    if signature.only is None:
        raise Refused(400, f"{media} carries one tensor, and this model has the inputs {quote(signature.inputs)}")
    return signature.only


def _view(body: bytes, offset: int, dtype: np.dtype, shape: tuple[int, ...], tensor: Tensor) -> np.ndarray:
    count, got = math.prod(shape), len(body) - offset
    if min(shape, default=1) < 0 or count * dtype.itemsize != got:
        need = count * dtype.itemsize
        raise Refused(400, f"input {tensor.name!r}: shape {list(shape)} of {dtype.name} takes {need} bytes, got {got}")
    if dtype.kind == "b":
        flags = np.frombuffer(body, np.uint8, offset=offset)
        if flags.size and flags.max() > 1:
            raise Refused(400, f"input {tensor.name!r}: a boolean is the byte 0 or 1, got {flags.max()}")
    order = dtype.newbyteorder("<") if dtype.byteorder == "=" else dtype
    array = np.frombuffer(body, order, offset=offset).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    return np.require(array, requirements=["C", "A"])


DECODERS = {JSON: decode_json, RAW: decode_raw, NPY: decode_npy}


def encode_json(call: Call, outputs: Mapping[str, np.ndarray], rows: int, labels: Mapping[str, str]) -> bytes:
    """Write rows, columns or a lone tensor; NaN and infinity, which JSON has no word for, become null."""
    arrays = {name: _plain(array) for name, array in outputs.items()}
    if call.form == "columns":
        return orjson.dumps({"outputs": arrays, **labels}, option=_JSON_OPTIONS)
    lone = next(iter(arrays.values())) if len(arrays) == 1 else None
    if call.form == "rows":
        for name, array in outputs.items():
            if not array.ndim or array.shape[0] != rows:
                shape = list(array.shape)
                raise Refused(
                    400, f"output {name!r} has shape {shape}, not one row for each of {rows}: send columns instead"
                )
        if lone is None:
            names = list(arrays)
            split = [dict(zip(names, values, strict=True)) for values in zip(*arrays.values(), strict=True)]
            return orjson.dumps({"predictions": split, **labels}, option=_JSON_OPTIONS)
    return orjson.dumps({"predictions": arrays if lone is None else lone, **labels}, option=_JSON_OPTIONS)


def _plain(array: np.ndarray) -> Any:
    if array.ndim > 1 or (array.ndim == 1 and array.dtype.kind == "f"):
        return np.ascontiguousarray(array)
    return array[()] if array.dtype.kind == "f" else array.tolist()  # orjson writes no numpy.longlong scalars


def encode_raw(outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Write the only output as little-endian bytes, its shape and element type in headers."""
    array = _lone(outputs)
    shape = ",".join(map(str, array.shape))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(), {
        "x-shape": shape,
        "x-dtype": array.dtype.name,
    }


def encode_npy(outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Write the only output as an npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, _lone(outputs), version=(1, 0), allow_pickle=False)
    return stream.getvalue(), {}


def _lone(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(outputs) != 1:
        raise Refused(406, f"this model has the outputs {quote(outputs)}; only {JSON} carries several")
    return next(iter(outputs.values()))


ENCODERS = {RAW: encode_raw, NPY: encode_npy}
