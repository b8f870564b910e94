"""Tables as text, one line a row and commas between cells (RFC 4180): to a model's inputs, and from its outputs."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import TYPE_CHECKING, Any

from .faults import Invalid
from .rows import dump, plain, with_rows
from .signature import quote
from .tensors import from_flat

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from .signature import Signature, Tensor

CSV = "text/csv"
_WHOLE = re.compile(r"[+-]?\d{1,30}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def from_csv(body: bytes, signature: Signature) -> dict[str, np.ndarray]:
    """Read a table.

    1. A model with one input takes a row's values in the order of its cells; a first line of names is passed over.
    2. A model with several inputs, or one of texts, one value a row each, takes each from the column that its first
       line names.

    An empty cell, NaN and infinity are no values.

    Raises:
        Invalid: Naming line and column, what was expected and what came.
    """
    lines = _lines(body)
    heading = [cell.strip() for cell in lines[0]]
    named = not all(_NUMBER.fullmatch(cell) or cell.lower() in _FLAGS for cell in heading)
    rows = lines[1:] if named else lines
    if not rows:
        raise Invalid("the table has no rows")
    if signature.only is not None and not signature.only.textual:
        return {signature.only.name: _column(rows, range(len(heading)), signature.only, 1 + named)}
    if not named or sorted(heading) != sorted(signature.inputs):
        raise Invalid(f"the first line must name the inputs {quote(signature.inputs)}, each once")
    places = {name: range(heading.index(name), heading.index(name) + 1) for name in signature.inputs}
    return {name: _column(rows, places[name], tensor, 2) for name, tensor in signature.inputs.items()}


def _lines(body: bytes) -> list[list[str]]:
    try:
        lines = [line for line in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Invalid(f"the body is not a table of comma-separated values: {error}") from None
    if not lines:
        raise Invalid("the body is empty")
    for at, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise Invalid(f"line {at} has {len(line)} cells, and the first has {len(lines[0])}")
    return lines


def _column(rows: list[list[str]], cells: range, tensor: Tensor, first: int) -> np.ndarray:
    """Read some cells of every row as one tensor whose later dimensions, if any, they fill."""
    inner = row_shape(tensor, len(cells))
    values = [_value(row[at], tensor, line, at + 1) for line, row in enumerate(rows, first) for at in cells]
    return from_flat(values, [len(rows), *inner], tensor)


def row_shape(tensor: Tensor, cells: int) -> list[int]:
    """Give the sizes of one row of a tensor, which so many cells fill.

    Raises:
        Invalid: When they do not.
    """
    inner = [size for size in tensor.shape[1:] if isinstance(size, int)]
    if not tensor.shape or len(inner) < len(tensor.shape) - 1 or math.prod(inner) != cells:
        raise Invalid(f"input {tensor.name!r} of shape {tensor.wanted} is not one of {cells} cells a row")
    return inner


def _value(cell: str, tensor: Tensor, line: int, column: int) -> Any:
    if tensor.textual:
        return cell
    text = cell.strip()
    if tensor.dtype == "bool":
        if text.lower() in _FLAGS:
            return _FLAGS[text.lower()]
    elif "int" in tensor.dtype:
        if _WHOLE.fullmatch(text):
            return int(text)
    elif _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    raise Invalid(
        f"line {line}, column {column}: expected {tensor.dtype} for input {tensor.name!r}, found {cell[:40]!r}"
    )


def to_csv(outputs: Mapping[str, np.ndarray], rows: int) -> bytes:
    """Write one line a row, without a heading: the values of every output in turn.

    NaN and infinity are empty cells; texts stand between quotation marks.

    Raises:
        Invalid: When an output has not one row for each that was asked.
    """
    tables = [array.reshape(rows, -1) for array in with_rows(outputs, rows).values()]
    return b"".join(b",".join(_cells(table[row]) for table in tables) + b"\n" for row in range(rows))


def _cells(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return dump(plain(values))[1:-1].replace(b"null", b"")
    return ",".join('"' + str(text).replace('"', '""') + '"' for text in values).encode()
