"""Cells of a CSV or Parquet file → arrays, naming row and column of a cell that does not fit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError, did_you_mean
from modelpack.sources.rows import extra, place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None")


@dataclass(frozen=True)
class Cells:
    """Columns as they are in the file: texts from CSV, typed values from Parquet."""

    path: Path
    columns: dict[str, pa.Array]

    @classmethod
    def read(cls, path: Path, names: Sequence[str], delimiter: str | None) -> Cells:
        """Read some columns; `delimiter` None means Parquet.

        Raises:
            StageError: When the file is broken or lacks a column.
            MissingError: When pyarrow is absent.
        """
        with extra("tables"):
            import pyarrow as pa
        try:
            found = _parquet(path, names) if delimiter is None else _text(path, names, delimiter)
        except (pa.ArrowException, OSError) as error:
            # pyarrow counts lines, the header included; rows are counted below it.
            said = re.sub(r"Row #(\d+)", lambda match: f"row {int(match[1]) - 1}", str(error))
            raise StageError(f"it cannot be read: {said}", where=str(path)) from error
        return cls(path, {name: _plain(found.column(name)) for name in names})

    def texts(self, name: str) -> list[str]:
        """Give a column as texts, empty where the value is missing."""
        import pyarrow as pa

        column = self.columns[name]
        if pa.types.is_floating(column.type):
            values = [None if value is None or math.isnan(value) else value for value in column.to_pylist()]
            return ["" if value is None else repr(value) for value in values]
        return ["" if value is None else str(value) for value in column.to_pylist()]

    def values(self, name: str, dtype: str, fill: float | None) -> NDArray[Any]:
        """Give a column as numbers of a type, missing ones filled.

        Raises:
            StageError: For a missing value without `fill`, or a cell that the type cannot hold.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        column = _absent(self.columns[name])
        if column.null_count and fill is None:
            row = next(row for row, value in enumerate(column) if not value.is_valid)
            where = place(self.path, row, name)
            raise StageError("the value is missing", where=where, then="correct it, or set `fill:` to a number")
        kind = np.dtype(dtype).kind
        wanted = pa.float64() if kind == "f" else pa.bool_() if kind == "b" else pa.from_numpy_dtype(dtype)
        values = self._cast(column, wanted, name, dtype)
        if column.null_count:
            values = pc.fill_null(values, pa.scalar(fill).cast(wanted))
        array = values.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            given: NDArray[Any] = array.astype(dtype)
        if kind == "f" and (np.isinf(given) & ~np.isinf(array)).any():
            row = int(np.argmax(np.isinf(given) & ~np.isinf(array)))
            raise StageError(f"{array[row]!r} is too large for {dtype}", where=place(self.path, row, name))
        return given

    def _cast(self, column: pa.Array, wanted: pa.DataType, name: str, dtype: str) -> pa.Array:
        """Cast a column, or name the first cell that cannot be cast."""
        import pyarrow as pa

        if not _numeric(column.type) and not pa.types.is_string(column.type):
            raise StageError(f"the column '{name}' holds {column.type}, numbers are expected", where=str(self.path))
        # Rounding a large whole number to a float is what a float column means.
        safe = not (pa.types.is_floating(wanted) and not pa.types.is_string(column.type))
        try:
            return column.cast(wanted, safe=safe)
        except pa.ArrowException:
            for row, value in enumerate(column):
                try:
                    value.cast(wanted)
                except pa.ArrowException as error:
                    message = f"{value.as_py()!r} is no {dtype}"
                    raise StageError(message, where=place(self.path, row, name)) from error
            raise


def _parquet(path: Path, names: Sequence[str]) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        known = file.schema_arrow.names
        for name in names:
            if name not in known:
                raise StageError(f"there is no column '{name}'", where=str(path), then=did_you_mean(name, known))
        return file.read(columns=list(names))


def _text(path: Path, names: Sequence[str], delimiter: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    return csv.read_csv(
        path,
        # Only one thread counts rows, which errors then name.
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            include_columns=list(names), column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Join the parts of a column and undo dictionary encoding and the variants of text."""
    import pyarrow as pa

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return array


def _absent(column: pa.Array) -> pa.Array:
    """Mark what stands for a missing number as missing: some texts, and not-a-number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        absent = pc.is_in(column, value_set=pa.array(MISSING))
    elif pa.types.is_floating(column.type):
        absent = pc.is_nan(column)
    else:
        return column
    return pc.if_else(absent, pa.scalar(None, column.type), column)


def _numeric(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )
