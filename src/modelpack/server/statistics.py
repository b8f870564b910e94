"""What models have done, in the terms of Triton's statistics extension: all workers of a server count together."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .board import LATEST, Board

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .batching import Run
    from .board import Row

_SUCCESS, _FAIL, _QUEUE, _STEPS, _INFERENCES, _EXECUTIONS, _SIZE = 0, 2, 4, 6, 10, 11, 12  # places in a model's row
_APART = "\x1f"  # between what names a row; no model has it
_log = logging.getLogger("modelpack.server")


@dataclass(frozen=True)
class Figures:
    """What a version of a model has done.

    Attributes:
        success: Requests that were answered, and their nanoseconds from arrival in the model to the answer.
        fail: The same of those that were taken and not answered.
        queue: Requests that were answered, and the nanoseconds that they waited.
        steps: Requests in all runs, and their nanoseconds of joining inputs, running, and splitting outputs.
        inferences: Rows.
        executions: Runs.
        last: When the last run ended, in milliseconds since 1970.
        batches: The same as `steps`, for runs, by their rows.
    """

    success: tuple[int, ...]
    fail: tuple[int, ...]
    queue: tuple[int, ...]
    steps: tuple[int, ...]
    inferences: int
    executions: int
    last: int
    batches: Mapping[int, tuple[int, ...]]


class Ledger:
    """Where the models of one worker count, and all of them are read.

    Args:
        board: What all workers write on; one of its own where there is one worker.
        worker: The number of this one, from 0.
    """

    def __init__(self, board: Board | None = None, worker: int = 0) -> None:
        self._board = board or Board()
        self._sheet = self._board.ledger(worker)
        self._full = False

    def row(self, name: str, count: int) -> Row:
        """Give the numbers of a name; where there is no room, numbers that no other worker sees."""
        try:
            return self._sheet.row(name, count)
        except MemoryError:
            if not self._full:
                _log.warning("no room is left for statistics: those of models that are new stay incomplete")
            self._full = True
            return memoryview(bytearray(8 * count)).cast("d")

    def totals(self) -> dict[str, list[float]]:
        """Add up the rows of all workers, by name."""
        return self._board.totals(self._board.ledger)


class Statistics:
    """Requests to one version of a model that succeeded and failed, their times, and runs by their rows.

    Only the thread of the event loop may count. The same files go on where they were when they are loaded again.

    Args:
        ledger: Where to count.
        names: What tells this model from others, and its files from those that it had before.
    """

    def __init__(self, ledger: Ledger, *names: object) -> None:
        self.name = hashlib.sha256(repr(names).encode()).hexdigest()[:32]
        self._ledger = ledger
        self._row, self._last = ledger.row(self.name, _SIZE), ledger.row(LATEST + self.name, 1)
        self._batches: dict[int, Row] = {}

    def ran(self, run: Run) -> None:
        """Count one run that ended well."""
        rows, spent = run.rows, (run.joined - run.started, run.ended - run.joined, run.split - run.ended)
        if (batch := self._batches.get(rows)) is None:
            batch = self._batches[rows] = self._ledger.row(f"{self.name}{_APART}{rows}", 4)
        row = self._row
        row[_INFERENCES] += rows
        row[_EXECUTIONS] += 1
        _step(row, _STEPS, run.requests, spent)
        _step(batch, 0, 1, spent)
        self._last[0] = time.time()

    def answered(self, queued: float, seconds: float) -> None:
        """Count one request that waited `queued` of its `seconds` and got its answer."""
        _add(self._row, _SUCCESS, seconds)
        _add(self._row, _QUEUE, queued)

    def failed(self, seconds: float) -> None:
        """Count one request that was taken and got none."""
        _add(self._row, _FAIL, seconds)

    def figures(self, totals: Mapping[str, list[float]]) -> Figures:
        """Pick out of the totals of the ledger what this version of the model has done."""
        row = tuple(int(number) for number in totals.get(self.name, self._row))
        batches = {
            int(name.partition(_APART)[2]): tuple(int(number) for number in numbers)
            for name, numbers in totals.items()
            if name.startswith(self.name + _APART)
        }
        last = int(1000 * totals.get(LATEST + self.name, self._last)[0])
        return Figures(
            row[_SUCCESS:_FAIL], row[_FAIL:_QUEUE], row[_QUEUE:_STEPS], row[_STEPS:_INFERENCES],
            row[_INFERENCES], row[_EXECUTIONS], last, dict(sorted(batches.items())),
        )  # fmt: skip


def _add(row: Row, place: int, seconds: float) -> None:
    row[place] += 1.0
    row[place + 1] += 1e9 * seconds


def _step(row: Row, place: int, count: int, spent: tuple[float, float, float]) -> None:
    """Count the seconds that one run spent on its steps, once for each request."""
    row[place] += count
    row[place + 1] += 1e9 * count * spent[0]
    row[place + 2] += 1e9 * count * spent[1]
    row[place + 3] += 1e9 * count * spent[2]
