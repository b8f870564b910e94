"""Texts in a file: lines, CSV columns or JSON lines."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from modelpack.errors import StageError, did_you_mean
from modelpack.sources.rows import place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_LINE = "line"
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Text:
    """One row: a text, perhaps a second one, and a label, empty without one."""

    first: str
    second: str | None
    label: str

    @property
    def both(self) -> tuple[str, str]:
        """The two texts of a pair."""
        return self.first, self.second or ""


def check_header(path: Path, names: Sequence[str]) -> None:
    """Compare the names of columns with the first line of a file that has one there.

    Raises:
        ValueError: For a column that is not there once.
    """
    if path.suffix not in {".csv", ".tsv"}:
        return
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = next(_csv(path, stream), [])
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name in names:
        if name not in header:
            raise ValueError(f"{path} has no column '{name}': {did_you_mean(name, header)}".rstrip(": "))
        if header.count(name) > 1:
            raise ValueError(f"{path} has two columns '{name}'")


def read(path: Path, column: str | None, pair: str | None, label: str | None) -> list[Text]:
    """Read all texts in order.

    Raises:
        StageError: For a file, line or value that cannot be used, naming it.
    """
    texts: list[Text] = []
    largest = csv.field_size_limit(2**31 - 1)  # whole documents stand in one cell
    try:
        with path.open(encoding="utf-8-sig", newline=None if path.suffix in {".txt", ".jsonl"} else "") as stream:
            for row, found in enumerate(_rows(path, stream)):
                second = None if pair is None else _value(found, pair, path, row)
                mark = "" if label is None else _label(found, label, path, row)
                texts.append(Text(_value(found, column or _LINE, path, row), second, mark))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise StageError(f"it cannot be read: {error}", where=place(path, len(texts))) from error
    finally:
        csv.field_size_limit(largest)
    return texts


def _csv(path: Path, stream: IO[str]) -> Iterator[list[str]]:
    return csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)


def _rows(path: Path, stream: IO[str]) -> Iterator[Mapping[str, object]]:
    """Give every row's values by column; blank lines are no rows."""
    if path.suffix in {".csv", ".tsv"}:
        lines = (line for line in _csv(path, stream) if line)
        header = next(lines, [])
        for row, line in enumerate(lines):
            if len(line) != len(header):
                raise StageError(f"it has {len(line)} values for {len(header)} columns", where=place(path, row))
            yield dict(zip(header, line, strict=True))
        return
    for row, text in enumerate(line for line in stream if line.strip()):
        if path.suffix == ".txt":
            yield {_LINE: text.removesuffix("\n")}
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StageError(f"it is not JSON: {error}", where=place(path, row)) from error
        if not isinstance(found, dict):
            raise StageError("a JSON object is expected", where=place(path, row))
        yield found


def _value(found: Mapping[str, object], name: str, path: Path, row: int) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        said = "is missing" if value is None or value == "" else f"is {value!r}, a text is expected"
        raise StageError(f"the text {said}", where=place(path, row, name))
    return value


def _label(found: Mapping[str, object], name: str, path: Path, row: int) -> str:
    value = found.get(name)
    if isinstance(value, (list, dict)):
        raise StageError(f"the label is {value!r}, a number or text is expected", where=place(path, row, name))
    return "" if value is None else str(value)
