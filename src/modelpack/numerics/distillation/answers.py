"""A teacher that remembers: what it answered to a row is kept on disk, and later passes cost nothing.

The bits of an answer may depend on how many rows a teacher is asked at once, for kernels round differently at other
sizes. So it is always asked the same number of rows, and the first answers that could come from memory are asked for
once more and compared bit by bit. What a student learns is the same with and without memory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelpack import __version__, canonical
from modelpack.device import processor
from modelpack.numerics.distillation import coding
from modelpack.numerics.distillation.shelf import Shelf
from modelpack.quantities import duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Ask = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Gives named outputs for named inputs; a row of the one is a row of the other."""

_WAY = 2
"""Raised by hand when teachers are asked in another way, so that their kernels round otherwise."""

_TRIALS = 2
"""How many batches that memory could answer are asked for nevertheless, and compared."""

_SETTLED = 16
"""How many batches must come from memory before it is known what that costs."""


@dataclass(frozen=True)
class Memory:
    """Where answers are kept.

    Attributes:
        room: Directory of the answers of all teachers.
        limit: Bytes that it may hold.
        asked: Says which teacher is asked, and for what; equal texts stand for equal answers.
        learnt: Counts the different rows that are learnt from.
        judged: Counts those that judge it.
    """

    room: Path
    limit: int
    asked: str
    learnt: Callable[[], int]
    judged: Callable[[], int] = lambda: 0


@dataclass
class Use:
    """What memory was good for.

    Attributes:
        batches: How many the teacher was to answer.
        remembered: How many of them came from memory.
        rows: Rows whose answers were written.
        unkept: Rows for whose answers there was no room.
        bytes: What the directory of this teacher holds.
        seconds: What remembering saved, at least.
        off: Why memory was given up; empty when it was not.
        failed: Whether that is so because the disk refused.
    """

    batches: int = 0
    remembered: int = 0
    rows: int = 0
    unkept: int = 0
    bytes: int = 0
    seconds: float = 0.0
    off: str = ""
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give the figures as a JSON object."""
        return asdict(self)

    def remarks(self) -> list[str]:
        """Say what a user should know."""
        if self.off:
            return [f"the teacher's answers are not kept: {self.off}"]
        found = []
        if self.remembered:
            found.append(
                f"{self.remembered} of {self.batches} batches were answered from the teacher's cache "
                f"({size(self.bytes)}): {duration(max(0.0, self.seconds))} saved"
            )
        if self.unkept:
            kept = self.rows / (self.rows + self.unkept)
            found.append(f"the teacher's cache is full and holds {kept:.0%} of the rows: raise `cache`")
        return found


@dataclass
class Answers:
    """A teacher that is asked once for every row, where it has a memory.

    Attributes:
        ask: The teacher; its answer to a row depends on that row alone.
        rows: How many rows it is asked at once; fewer are filled up, more are cut.
        memory: Where answers are kept; None to keep none.
        use: What memory was good for so far.
    """

    ask: Ask
    rows: int
    memory: Memory | None = None
    use: Use = field(default_factory=Use)
    _shelf: Shelf | None = None
    _by_rows: bool | None = None
    _trials: int = _TRIALS
    _fastest: float = math.inf
    _spent: float = 0.0

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Answer a batch."""
        self.use.batches += 1
        if self.memory is None or self.use.off:
            return self._asked(inputs)
        begun = time.perf_counter()
        names = coding.keys(inputs, self.rows)
        if names is None:
            self._give_up("the model's inputs differ in their number of rows")
            return self._asked(inputs)
        items, found = None, None
        with self._disk(self.memory):
            items = self._opened(self.memory, inputs).find(names)
            found = None if items is None else coding.decoded(items, next(iter(inputs.values())).device)
            self._spent += time.perf_counter() - begun
        if found is not None and self._trials == 0:
            return self._from_memory(found)
        begun = time.perf_counter()
        answers = self._asked(inputs)
        self._fastest = min(self._fastest, time.perf_counter() - begun)
        with self._disk(self.memory):
            self._learn(names, answers, items if found is not None else None)
        return answers

    @contextlib.contextmanager
    def _disk(self, memory: Memory) -> Iterator[None]:
        """Go on without memory where the disk refuses."""
        try:
            yield
        except OSError as error:
            self.use.failed = True
            self._give_up(f"{error.filename or memory.room}: {error.strerror or error}")

    def _from_memory(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        self.use.remembered += 1
        self.use.seconds = self.use.remembered * self._fastest - self._spent
        if self.use.remembered == _SETTLED and self.use.seconds < 0:
            self._give_up("to ask it is faster")
        return found

    def _opened(self, memory: Memory, inputs: Mapping[str, Tensor]) -> Shelf:
        if self._shelf is None:
            device = next(iter(inputs.values())).device
            name = canonical.digest([memory.asked, _circumstances(device)])
            self._shelf = Shelf(memory.room / name, memory.limit)
            self.use.bytes = self._shelf.size
        return self._shelf

    def _learn(self, keys: Sequence[bytes], answers: Mapping[str, Tensor], items: Sequence[memoryview] | None) -> None:
        """Keep what was answered, or compare it with what was kept."""
        if self.memory is None or self._shelf is None:
            return
        coded = coding.encoded(answers, len(keys))
        if coded is None:
            self._give_up("its outputs are not made of rows")
        elif items is not None:
            self._trials -= 1
            if any(one != other for one, other in zip(items, coded, strict=True)):
                self._give_up("what it answers to a row depends on the rows beside it")
        else:
            added = self._shelf.add(keys, coded)
            self.use.rows += added or 0
            self.use.unkept += len(keys) if added is None else 0
            self.use.bytes = self._shelf.size
            self._doubt(self.memory, len(coded[0]))

    def _doubt(self, memory: Memory, item: int) -> None:
        """Give up where memory cannot help: it is too small for all rows, or they never come back."""
        rows = memory.learnt()
        if item * rows > memory.limit:
            self._give_up(f"those to all rows would take {size(item * rows)}: raise `cache`")
        elif self.use.rows > 2 * rows and self.use.rows > 2 * (rows + memory.judged()):
            self._give_up("the data give other rows in every pass")

    def _give_up(self, why: str) -> None:
        self.use.off = why
        self.close()

    def close(self) -> None:
        """Let go of the files; the next question opens them again."""
        if self._shelf is not None:
            self._shelf.close()
            self._shelf = None

    def _asked(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ask for `rows` rows at a time; gives tensors in the order of memory that those from the disk have."""
        count = coding.number(inputs)
        if count in (self.rows, None) or self._by_rows is False:
            return _contiguous(self.ask(inputs))
        if self._by_rows is None:
            plain = self.ask(inputs)
            self._by_rows = all(value.ndim and len(value) == count for value in plain.values())
            if not self._by_rows:
                return _contiguous(plain)
        pieces = [self.ask(piece) for piece in _pieces(inputs, count, self.rows)]
        return _contiguous({name: torch.cat([piece[name] for piece in pieces])[:count] for name in pieces[0]})


def _contiguous(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in given.items()}


def _pieces(inputs: Mapping[str, Tensor], count: int, rows: int) -> Iterator[dict[str, Tensor]]:
    """Cut a batch into pieces of `rows` rows, the last one filled up with its first row."""
    for start in range(0, count, rows):
        piece = {name: value[start : start + rows] for name, value in inputs.items()}
        lacking = max(0, start + rows - count)
        yield {name: torch.cat([value, value[:1].expand(lacking, *value.shape[1:])]) for name, value in piece.items()}


def _circumstances(device: torch.device) -> dict[str, Any]:
    """Give what decides how a machine rounds."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()["name"]
    versions = {"modelpack": __version__, "torch": torch.__version__, "way": _WAY}
    return {**versions, "device": named, "threads": torch.get_num_threads()}
