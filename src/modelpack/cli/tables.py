"""Rows as aligned text that fits the terminal; the one place that knows how a table looks."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GAP = "  "
_NARROWEST = 12


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "") -> str:
    """Align rows under their heads; cells that do not fit the terminal are folded, never cut.

    Args:
        head: Column names; a table without them has none.
        rows: Cells.
        right: Columns that hold figures and are aligned to the right.
        indent: What each line begins with.
    """
    every = [list(head), *[list(row) for row in rows]] if head else [list(row) for row in rows]
    if not every:
        return ""
    widths = _fit([max(width(cell) for cell in column) for column in zip(*every, strict=True)], len(indent))
    lines = []
    for row in every:
        folded = [_fold(cell, size) for cell, size in zip(row, widths, strict=True)]
        for line in range(max(len(cell) for cell in folded)):
            cells = [cell[line] if line < len(cell) else "" for cell in folded]
            padded = [_pad(cell, widths[at], left=at not in right) for at, cell in enumerate(cells)]
            lines.append((indent + GAP.join(padded)).rstrip())
    if head:
        rule = indent + GAP.join("-" * size for size in widths)
        lines.insert(max(len(_fold(cell, size)) for cell, size in zip(head, widths, strict=True)), rule)
    return "\n".join(lines)


def facts(pairs: Mapping[str, str], *, indent: str = "") -> str:
    """List names and values, one pair a line; a value stays in one piece, so that a path can be copied."""
    size = max((width(name) for name in pairs), default=0) + 1
    return "\n".join(
        f"{indent}{_pad(f'{name}:', size, left=True)}{GAP}{value}".rstrip() for name, value in pairs.items()
    )


def heading(text: str, body: str) -> str:
    """Put a title over a text; nothing at all when there is no text."""
    return f"{text}\n{body}" if body else ""


def page(*parts: str) -> str:
    """Join the parts that are not empty with a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def width(text: str) -> int:
    """Count the terminal cells a text takes."""
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def _pad(text: str, size: int, *, left: bool) -> str:
    space = " " * (size - width(text))
    return text + space if left else space + text


def _fit(widths: list[int], indent: int) -> list[int]:
    """Shrink the widest columns until the table fits the terminal."""
    room = shutil.get_terminal_size((1000, 24)).columns - indent - len(GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


def _fold(cell: str, size: int) -> list[str]:
    lines = [
        part for line in cell.split("\n") for part in (textwrap.wrap(line, size) if width(line) > size else [line])
    ]
    return lines or [""]
