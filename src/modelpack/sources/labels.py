"""Texts that name a class, or a number to predict → the `label` array."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from modelpack.data import SourceConfig
from modelpack.errors import StageError
from modelpack.sources.rows import place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_INTEGER = re.compile(r"[+-]?[0-9]+")


class LabelledConfig(SourceConfig):
    """Settings of a source whose labels may be texts."""

    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Class names in the order of the model's outputs; all that occur, sorted, when absent.",
    )

    @field_validator("classes")
    @classmethod
    def _different(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = next((name for name in classes or () if (classes or ()).count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the class '{twice}' is listed twice")
        return classes


def numbers(texts: Sequence[str], classes: Sequence[str] | None, path: object, column: str = "") -> NDArray[Any]:
    """Turn label texts into an array with one number a row.

    With `classes`, each text's position among them. Without, a first label that is a number asks for numbers: all
    whole ones are kept as int64, others as float32. Any other first label asks for classes: int64 positions among
    the sorted different texts.

    Raises:
        StageError: For a label that is missing, of no known class, or not a number like the ones before it.
    """
    import numpy as np

    texts = [text.strip() for text in texts]
    for row, text in enumerate(texts):
        if not text:
            raise StageError("the label is missing", where=place(path, row, column))
    if classes is None and texts and _number(texts[0]) is not None:
        return _values(texts, path, column)
    known = {name: index for index, name in enumerate(sorted(set(texts)) if classes is None else classes)}
    for row, text in enumerate(texts):
        if text not in known:
            raise StageError(f"the label '{text}' is not among `classes`", where=place(path, row, column))
    return np.array([known[text] for text in texts], dtype=np.int64)


def _values(texts: Sequence[str], path: object, column: str) -> NDArray[Any]:
    import numpy as np

    for row, text in enumerate(texts):
        if _number(text) is None:
            raise StageError(
                f"the label '{text}' is not a number like the first one, '{texts[0]}'",
                where=place(path, row, column),
                then="correct it, or list `classes:` if the labels are names",
            )
    if all(_INTEGER.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    return np.array([float(text) for text in texts], dtype=np.float32)


def _number(text: str) -> float | None:
    """Read a finite number that int64 or float32 can hold."""
    try:
        value = float(text)
    except ValueError:
        return None
    largest = 2.0**63 if _INTEGER.fullmatch(text) else 3.4e38
    return value if math.isfinite(value) and abs(value) < largest else None
