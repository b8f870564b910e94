"""Numbers that all workers of a server count together, in memory they share: nothing is written to any file.

Each process writes a sheet of its own and may read all of them, so that none waits for another. A sheet outlives the
worker that wrote it: whoever takes its place counts on.
"""

from __future__ import annotations

import mmap
import operator
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .minutes import Minutes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Row = memoryview[float]

_SIZE = 2**20  # bytes of a sheet, and of a ledger; pages that nothing is written to take no memory
_LEDGER = 2**23
BACKLOG = 2048
"""Connections that may wait in the socket that workers share."""
NOW = "now: "
"""What the name of a row begins with that tells how things are now, not what has happened."""
LATEST = "latest: "
"""What the name of a row begins with whose largest numbers count, not their sums."""
_HEAD = struct.Struct("=II")  # bytes of a name, count of its numbers


class Sheet:
    """Rows of 64-bit floats by name, in a piece of memory that begins as zeros.

    The first eight bytes tell how many are used. Each row is the lengths of its name and of its numbers, its name, and
    its numbers, on multiples of eight bytes.

    Args:
        memory: The piece, which perhaps has rows already.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._numbers, self._used = memory, memory.cast("d"), memory[:8].cast("Q")
        self._known = dict(self.rows())

    def row(self, name: str, count: int = 1) -> Row:
        """Give the numbers of a name, to be changed in place; zeros where the name is new.

        Raises:
            MemoryError: When the sheet is full.
        """
        if (found := self._known.get(name)) is None:
            found = self._known[name] = self._add(name.encode(), count)
        return found

    def _add(self, name: bytes, count: int) -> Row:
        begin = 8 + self._used[0]
        first, end = _places(begin, len(name), count)
        if end > len(self._memory):
            raise MemoryError("the sheet of figures is full")
        _HEAD.pack_into(self._memory, begin, len(name), count)
        self._memory[begin + _HEAD.size : begin + _HEAD.size + len(name)] = name
        self._used[0] = end - 8  # last, so that no reader meets half a row
        return self._numbers[first // 8 : end // 8]

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Give every name with its numbers."""
        at, stop = 8, 8 + self._used[0]
        while at < stop:
            length, count = _HEAD.unpack_from(self._memory, at)
            first, end = _places(at, length, count)
            name = bytes(self._memory[at + _HEAD.size : at + _HEAD.size + length])
            yield name.decode(), self._numbers[first // 8 : end // 8]
            at = end


def _places(begin: int, length: int, count: int) -> tuple[int, int]:
    """Give where the numbers of a row begin and end."""
    first = begin + _HEAD.size + -(-length // 8) * 8
    return first, first + 8 * count


def _pieces(count: int, size: int) -> list[memoryview]:
    memory = memoryview(mmap.mmap(-1, count * size))
    return [memory[at * size : (at + 1) * size] for at in range(count)]


class Board:
    """A sheet for each worker, and one for the process that starts them; made before they are.

    Args:
        workers: How many there are.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._sheets, self._ledgers = _pieces(1 + workers, _SIZE), _pieces(workers, _LEDGER)
        self.common = Sheet(self._sheets[workers])
        self.processes = self.common.row("processes", workers)
        self.deaths = self.common.row("deaths")
        self.spent = self.common.row("seconds of processors that dead workers used")
        self.connections = self.common.row("connections", workers)
        self.seen = self.common.row("seen, in seconds of a clock that all share", workers)
        self.minutes = Minutes(workers)
        self._started = self.common.row("started")
        self.begun = self.common.row("begun, in seconds since 1970")
        self.begun[0] = time.time()

        for worker in range(workers):
            self.leave(worker)

    def join(self, worker: int) -> None:
        """Note that this process is a worker from now on."""
        self.beat(worker)
        self.processes[worker] = os.getpid()

    def beat(self, worker: int) -> None:
        """Note that a worker is well."""
        self.seen[worker] = time.monotonic()

    def leave(self, worker: int) -> None:
        """Note that a worker does not serve: nothing is left of how things were with it."""
        self.processes[worker] = 0.0
        self.connections[worker] = float("inf")  # nobody leaves a connection to it
        self.minutes.leave(worker)
        for name, row in self.sheet(worker).rows():
            if name.startswith(NOW):
                row[0] = 0.0

    def sheet(self, worker: int) -> Sheet:
        """Give the sheet of a worker, by its number from 0."""
        return Sheet(self._sheets[worker])

    def ledger(self, worker: int) -> Sheet:
        """Give the sheet where a worker counts what models have done."""
        return Sheet(self._ledgers[worker])

    def totals(self, sheet: Callable[[int], Sheet]) -> dict[str, list[float]]:
        """Add up the rows of all workers, by name.

        Args:
            sheet: `sheet` or `ledger`.
        """
        found: dict[str, list[float]] = {}
        for worker in range(self.workers):
            for name, row in sheet(worker).rows():
                if (known := found.get(name)) is None:
                    found[name] = list(row)
                else:
                    found[name] = [*map(max if name.startswith(LATEST) else operator.add, known, row)]
        return found

    def started(self, ready: str) -> bool:
        """Tell whether all workers were ready at once; a worker that stands in later for a dead one changes nothing.

        Args:
            ready: The row that is 1 in the sheet of a worker that is ready.
        """
        if not self._started[0]:
            values = [dict(self.sheet(each).rows()).get(ready, [0.0])[0] for each in range(self.workers)]
            self._started[0] = float(all(values))
        return bool(self._started[0])


@dataclass(frozen=True)
class Seat:
    """A worker's place among the others.

    Attributes:
        board: Where all count.
        number: Its own, from 0.
        alive: A pipe that ends with the process that started it.
        late: Whether it stands in for one that died, while the others serve.
    """

    board: Board
    number: int
    alive: int
    late: bool
