"""Rows of a CSV or Parquet file."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Self

from pydantic import Field, field_validator, model_validator

from modelpack.bind import FilePath
from modelpack.data import DataSource, source
from modelpack.errors import UsageError, did_you_mean
from modelpack.sources.cells import Cells
from modelpack.sources.labels import LabelledConfig, numbers
from modelpack.sources.rows import Columns, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelpack.bind import InputPath
    from modelpack.tensors import TensorSpec

SEPARATORS = {".csv": ",", ".tsv": "\t"}


class TableConfig(LabelledConfig):
    """A table and which of its columns become which arrays."""

    path: FilePath = Field(description="A .csv, .tsv or .parquet file; the first line of text files names the columns.")
    columns: dict[str, str | tuple[str, ...]] = Field(
        min_length=1, description="Array name → its column, or a list of columns side by side."
    )
    label: str | None = Field(None, description="Column of the truth: numbers, or names of classes.")
    fill: float | None = Field(None, description="Number to put where a value is missing; an error when absent.")
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="What separates values in a text file; ',' or a tab when absent."
    )

    @field_validator("path")
    @classmethod
    def _known(cls, value: InputPath) -> InputPath:
        if value.path.suffix not in {*SEPARATORS, ".parquet"}:
            raise ValueError(f"{value.path} is none of .csv, .tsv, .parquet")
        return value

    @field_validator("columns")
    @classmethod
    def _some(cls, columns: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        empty = next((name for name, given in columns.items() if not given), None)
        if empty is not None:
            raise ValueError(f"'{empty}' needs at least one column")
        return columns

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.label is not None and "label" in self.columns:
            raise ValueError("`label` and `columns: {label: …}` both give the array 'label'")
        if self.fill is not None and not math.isfinite(self.fill):
            raise ValueError("`fill` must be a finite number")
        if self.text:
            header = _header(self.path.path, self.delimiter)
            for name in self.used:
                if header.count(name) != 1:
                    many = "two columns" if name in header else "no column"
                    hint = did_you_mean(name, header) if name not in header else ""
                    raise ValueError(f"{self.path.path} has {many} '{name}'" + (f": {hint}" if hint else ""))
        return self

    @property
    def text(self) -> bool:
        """Whether the file is text, whose cells have no types."""
        return self.path.path.suffix in SEPARATORS

    @property
    def delimiter(self) -> str:
        """What separates the values of a text file."""
        return self.separator or SEPARATORS.get(self.path.path.suffix, ",")

    @property
    def used(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        names = [column for given in self.columns.values() for column in several(given)]
        return tuple(dict.fromkeys([*names, *([self.label] if self.label else [])]))


def several(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """See one column as a list of one."""
    return (given,) if isinstance(given, str) else given


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = next(csv.reader(stream, delimiter=delimiter), None)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not header:
        raise ValueError(f"{path} has no first line that names its columns")
    return header


@source(version=1, needs={"pyarrow": "tables"})
def table(config: TableConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:
    """Columns of a CSV or Parquet file."""
    for name, given in config.columns.items():
        spec = inputs.get(name)
        if spec is not None:
            _check_fit(config, name, len(several(given)), spec)
    specs = {name: inputs[name] for name in config.columns if name in inputs}
    facts = {"inputs": {name: [spec.dtype, list(spec.shape[1:])] for name, spec in specs.items()}}
    return Rows(table, config, str(config.path.path), lambda: _load(config, specs), lambda: facts)


def _check_fit(config: TableConfig, name: str, columns: int, spec: TensorSpec) -> None:
    """Compare the columns with the model's input.

    Raises:
        UsageError: When their number or the number to fill in does not fit.
    """
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    open_sizes = len(spec.shape[1:]) - len(sizes)
    needed = math.prod(sizes)
    if (open_sizes == 0 and columns != needed) or (open_sizes == 1 and columns % needed) or open_sizes > 1:
        raise UsageError(
            f"{columns} columns cannot fill the model's '{name}', a row of which is {list(spec.shape[1:])}",
            then=f"list {'' if open_sizes == 0 else 'a multiple of '}{needed} columns" if open_sizes < 2 else "",
        )
    if config.fill is not None and not spec.dtype.startswith("float") and not config.fill.is_integer():
        raise UsageError(f"`fill: {config.fill:g}` is no {spec.dtype}, which the model's '{name}' takes")


def _load(config: TableConfig, specs: Mapping[str, TensorSpec]) -> Columns:
    import numpy as np

    path = config.path.path
    cells = Cells.read(path, config.used, config.delimiter if config.text else None)
    arrays = {}
    for name, given in config.columns.items():
        spec = specs.get(name)
        dtype = spec.dtype if spec is not None else "float32"
        parts = [cells.values(column, dtype, config.fill) for column in several(given)]
        if spec is None:
            arrays[name] = parts[0] if isinstance(given, str) else np.stack(parts, axis=1)
        else:
            sizes = [-1 if isinstance(size, str) else size for size in spec.shape[1:]]
            arrays[name] = np.stack(parts, axis=1).reshape(len(parts[0]), *sizes)
    if config.label is not None:
        arrays["label"] = numbers(cells.texts(config.label), config.classes, path, config.label)
    return Columns.check(arrays, str(path))
