"""Everything that can go wrong, as a tree whose branches are exit codes.

::

    ModelpackError          1  a bug in modelpack
    ├── UsageError          2  the command line is wrong
    │   └── RecipeError     2  the recipe is wrong; carries every Problem found, each at its Place
    ├── StageError          3  a stage failed
    │   └── BudgetError     3  a measurement missed the recipe's budget
    ├── MissingError        4  something outside modelpack is missing: CUDA, Docker, a package
    └── StoreError          5  the store is damaged, in use or cannot be written

Only the command line turns one into text and an exit code.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, order=True)
class Place:
    """A position in a text the user wrote; lines and columns count from 1."""

    source: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One wrong thing at one place.

    Attributes:
        place: Where it starts.
        message: What is wrong, without a full stop.
        text: The source line, for display; empty when there is none.
        length: How many characters the caret line marks.
        hint: What to do about it, shown beside the carets.
    """

    place: Place
    message: str
    text: str = ""
    length: int = 1
    hint: str = ""

    def __str__(self) -> str:
        head = f"{self.place}: error: {self.message}"
        if not self.text:
            return f"{head} ({self.hint})" if self.hint else head
        gutter = f"{self.place.line:>5} | "
        carets = " " * (len(gutter) + self.place.column - 1) + "^" * max(1, self.length)
        return f"{head}\n{gutter}{self.text}\n{carets} {self.hint}".rstrip()


class ModelpackError(Exception):
    """Something failed; says what, where, and what to do next.

    Args:
        what: What is wrong, one sentence without a full stop.
        where: The file, step, layer or row concerned.
        then: What the user can do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", then: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.then = what, where, then

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.then}" if self.then else text


class UsageError(ModelpackError):
    """The command line asks for something that does not exist or does not fit."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong; `problems` lists everything found, in reading order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.place))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StageError(ModelpackError):
    """A stage could not do what its settings ask, or its result failed a check."""

    exit_code = 3


class BudgetError(StageError):
    """A measurement missed the budget that the recipe sets."""


class MissingError(ModelpackError):
    """Something outside modelpack is missing: a device, an engine, a package, a registry."""

    exit_code = 4


class StoreError(ModelpackError):
    """The store is damaged, in use by another process, or cannot be written."""

    exit_code = 5


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Suggest the nearest candidate, or list them all when there are few.

    >>> did_you_mean("importnce", ["macs", "importance"])
    "did you mean 'importance'?"
    >>> did_you_mean("zzz", ["macs", "importance"])
    'one of: importance, macs'
    """
    known = sorted(set(candidates))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"one of: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def listed(names: Iterable[str], most: int = 3) -> str:
    """Name some things, and count the rest.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    first = list(names)
    more = len(first) - most
    return ", ".join(first[:most]) + (f" and {more} more" if more > 0 else "")
