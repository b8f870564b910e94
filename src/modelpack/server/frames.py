"""Data frames in JSON, split into columns and rows or as records, to a model's inputs.

1. A model with one input takes a row's cells in the order of the columns, whatever those are called; one cell a row may
   also be the nested arrays of that row.
2. A model with several inputs takes each from the column of its name: a value, or nested arrays, a row.

Source: pandas, `DataFrame.to_json` with the orientations `split` and `records`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .faults import Invalid
from .signature import quote
from .table import row_shape
from .tensors import from_flat, from_json

if TYPE_CHECKING:
    import numpy as np

    from .signature import Signature, Tensor

_SPLIT = ("columns", "index", "data")


def from_split(content: Any, signature: Signature, place: str) -> dict[str, np.ndarray]:
    """Read an object with `columns`, `data` and, unused, `index`.

    Raises:
        Invalid: When it is none, or not what the model takes.
    """
    if not isinstance(content, dict) or not {"columns", "data"} <= set(content) <= set(_SPLIT):
        raise Invalid(f"{place!r} is not an object of 'columns' and 'data', with or without 'index'")
    columns, rows = content["columns"], content["data"]
    if not isinstance(columns, list) or not all(type(column) in (str, int) for column in columns):
        raise Invalid(f"{place!r}: 'columns' is not an array of names")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Invalid(f"{place!r}: 'data' is not an array of rows")
    for at, row in enumerate(rows):
        if len(row) != len(columns):
            raise Invalid(f"{place!r}: data[{at}] has {len(row)} cells, and there are {len(columns)} columns")
    index = content.get("index")
    if index is not None and not (isinstance(index, list) and len(index) == len(rows)):
        raise Invalid(f"{place!r}: 'index' is not an array with an entry for each of {len(rows)} rows")
    return _read([str(column) for column in columns], rows, signature, place)


def from_records(content: Any, signature: Signature, place: str) -> dict[str, np.ndarray]:
    """Read an array of objects, one a row, each with the same names.

    Raises:
        Invalid: When it is none, or not what the model takes.
    """
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise Invalid(f"{place!r} is not an array of objects")
    columns = list(content[0]) if content else []
    for at, row in enumerate(content):
        if row.keys() != content[0].keys():
            raise Invalid(f"{place}[{at}] has other names than the first: {quote(list(row)[:20])}")
    return _read(columns, [[row[column] for column in columns] for row in content], signature, place)


def _read(columns: list[str], rows: list[list[Any]], signature: Signature, place: str) -> dict[str, np.ndarray]:
    if not rows:
        raise Invalid(f"{place!r} has no rows")
    if signature.only is not None:
        return {signature.only.name: _cells(rows, signature.only)}
    if sorted(columns) != sorted(signature.inputs):
        given = quote(column[:40] for column in columns[:20])
        raise Invalid(f"{place!r}: the columns must be the inputs {quote(signature.inputs)}, each once; got {given}")
    places = {name: columns.index(name) for name in signature.inputs}
    return {name: _cells([[row[places[name]]] for row in rows], tensor) for name, tensor in signature.inputs.items()}


def _cells(rows: list[list[Any]], tensor: Tensor) -> np.ndarray:
    if len(rows[0]) == 1 and isinstance(rows[0][0], list):
        return from_json([cell for (cell,) in rows], tensor)
    return from_flat([cell for row in rows for cell in row], [len(rows), *row_shape(tensor, len(rows[0]))], tensor)
