"""Rows and columns of JSON, the common tongue of several protocols: to a model's inputs, and from its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .faults import Invalid
from .signature import quote
from .tensors import from_json
from .texts import wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .signature import Signature

    Tensors = dict[str, np.ndarray]


def parse(body: bytes | memoryview) -> Any:
    """Read JSON, in which NaN, infinity and numbers beyond float64 are no values.

    Raises:
        Invalid: When it is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error}" if body else "the body is empty") from None


def dump(content: Any) -> bytes:
    """Write JSON with what `plain` gave in it; NaN and infinity become null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def from_either(content: Any, signature: Signature, beside: tuple[str, ...] = ("parameters",)) -> tuple[Tensors, bool]:
    """Read an object with rows as `instances` or columns as `inputs`, and other known keys beside them.

    Returns:
        The inputs, and whether they came as rows.

    Raises:
        Invalid: When the object or what is in it is not what the model takes.
    """
    if not isinstance(content, dict):
        raise Invalid('expected a JSON object: {"instances": [...]} or {"inputs": {...}}')
    known = ("instances", "inputs", *beside)
    if unknown := [key for key in content if key not in known]:
        raise Invalid(f"unknown key {quote(sorted(unknown)[:3])}: expected one of {quote(known)}")
    if ("instances" in content) == ("inputs" in content):
        raise Invalid("expected either 'instances' (rows) or 'inputs' (columns), exactly one of them")
    if not isinstance(content.get("parameters", {}), dict):
        raise Invalid("'parameters' is not an object")
    if "instances" in content:
        return from_rows(content["instances"], signature), True
    return from_columns(content["inputs"], signature), False


def from_rows(rows: Any, signature: Signature, place: str = "instances") -> Tensors:
    """Read a list with one value a row, or one object of named values a row.

    Raises:
        Invalid: When the rows are not what the model takes.
    """
    if not isinstance(rows, list):
        raise Invalid(f"{place!r} is not an array of rows")
    if not rows:
        raise Invalid(f"{place!r} is empty: send at least one row")
    if not signature.rowwise:
        raise Invalid('this model has a tensor without rows: send columns, {"inputs": {...}}')
    if signature.only is not None and (not isinstance(rows[0], dict) or wrapped(rows[0])):
        return _tensors({signature.only.name: rows}, signature)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Invalid(f"{place}[{index}] is not an object with the inputs {quote(signature.inputs)}")
        _complete(row, signature, f"{place}[{index}]")
    return _tensors({name: [row[name] for row in rows] for name in signature.inputs}, signature)


def from_columns(columns: Any, signature: Signature, place: str = "'inputs'") -> Tensors:
    """Read an object of named tensors, or the lone tensor of a model with one input.

    Raises:
        Invalid: When the columns are not what the model takes.
    """
    if not isinstance(columns, dict):
        if signature.only is None:
            raise Invalid(f"{place} is not an object with the inputs {quote(signature.inputs)}")
        columns = {signature.only.name: columns}
    _complete(columns, signature, place)
    return _tensors(columns, signature)


def from_lines(body: bytes, signature: Signature) -> Tensors:
    """Read JSON lines: each is a row as `from_rows` takes it; empty ones are passed over.

    Raises:
        Invalid: When a line is no JSON, or the rows are not what the model takes.
    """
    rows = []
    for at, line in enumerate(body.splitlines(), 1):
        if line.strip():
            try:
                rows.append(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise Invalid(f"line {at} is not JSON: {error}") from None
    return from_rows(rows, signature, "lines")


def _complete(columns: Mapping[str, Any], signature: Signature, place: str) -> None:
    for name in columns:
        if name not in signature.inputs:
            known = quote(signature.inputs)
            raise Invalid(f"{place}: unknown input {name[:80]!r}: the model's inputs are {known}")
    for name, tensor in signature.inputs.items():
        if name not in columns:
            raise Invalid(f"{place}: input {name!r} is missing (shape {tensor.wanted}, {tensor.dtype})")


def _tensors(columns: Mapping[str, Any], signature: Signature) -> Tensors:
    return {name: from_json(columns[name], tensor) for name, tensor in signature.inputs.items()}


def to_rows(outputs: Mapping[str, np.ndarray], rows: int) -> Any:
    """Give one value a row, or one object of named values a row when there are several outputs.

    Raises:
        Invalid: When an output has not one row for each that was asked.
    """
    arrays = to_columns(with_rows(outputs, rows))
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]


def with_rows(outputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
    """Give the outputs back, each of which has so many rows.

    Raises:
        Invalid: When one has not.
    """
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != rows:
            shape = list(array.shape)
            raise Invalid(f"output {name!r} has shape {shape}, not one row for each of {rows}: send columns instead")
    return outputs


def to_lines(outputs: Mapping[str, np.ndarray], rows: int) -> bytes:
    """Write one row a line; see `to_rows`."""
    return b"".join(dump(row) + b"\n" for row in to_rows(outputs, rows))


def to_lone(outputs: Mapping[str, np.ndarray]) -> Any:
    """Give the only output as nested arrays, or an object of named ones when there are several."""
    arrays = to_columns(outputs)
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def to_columns(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Give named tensors as `dump` writes them."""
    return {name: plain(array) for name, array in outputs.items()}


def plain(array: np.ndarray) -> Any:
    """Give a tensor as nested arrays for `dump`."""
    if array.dtype == object:
        return array.tolist()
    if array.ndim > 1 or (array.ndim == 1 and array.dtype.kind == "f"):
        return np.ascontiguousarray(array)
    return array[()] if array.dtype.kind == "f" else array.tolist()  # orjson writes no numpy.longlong scalars
