"""Careful reading of plain data: what other stages, or other versions, recorded may have any shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelpack import quantities

Row = Mapping[str, Any]

_FARTHEST = 1e30


def number(value: Any) -> float | None:
    """Give a finite number; None for anything else.

    >>> number(2), number("2"), number(float("nan")), number(True)
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def rows(value: Any) -> list[Row]:
    """Give the rows of a list that holds nothing but rows; none where it is something else.

    >>> rows([{"a": 1}]), rows([1]), rows("no")
    ([{'a': 1}], [], [])
    """
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return value
    return []


def mapping(value: Any) -> Row:
    """Give a mapping; an empty one where it is something else."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """Give a list; an empty one where it is something else."""
    return value if isinstance(value, list) else []


def points(found: Sequence[Row], x: str, y: str) -> list[tuple[float, float]]:
    """Give the points that rows have under two keys; a row that lacks one, or lies off every chart, gives none."""
    pairs = ((number(row.get(x)), number(row.get(y))) for row in found)
    return [
        (first, second)
        for first, second in pairs
        if first is not None and second is not None and max(abs(first), abs(second)) < _FARTHEST
    ]


def figure(name: str, value: Any) -> str:
    """Write a figure in the unit that its name tells, and anything else in a few words."""
    found = number(value)
    if found is None:
        return text(value)
    return quantities.figure(name, value if abs(found) < _FARTHEST else found)


def text(value: Any, depth: int = 4) -> str:
    """Give any value in a few words; what lies deeper than `depth` is left out.

    >>> text(["a", 1]), text(None), text({"a": [1, 2]}), text(0.125)
    ('a, 1', '–', 'a: 1, 2', '0.125')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (Mapping, list)) and depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text(item, depth - 1)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(text(item, depth - 1) for item in value)
    return str(value)
