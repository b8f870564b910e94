"""What the processes of a server take of the machine, for Prometheus: the sums over all of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from .board import Board

_LIMIT, _BEGUN, _SPENT = "process_max_fds", "process_start_time_seconds", "process_cpu_seconds"


class Processes(Collector):
    """The families `process_*` of this process, or of all workers and the process that started them.

    Args:
        board: Has their numbers, when it all began, and the time that dead ones took.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        """Read /proc now."""
        workers = [str(int(number)) for number in self._board.processes if number]
        families: dict[str, list[Metric]] = {}
        for process in [*workers, str(os.getppid())] if workers else ["self"]:
            for family in _of(process):
                families.setdefault(family.name, []).append(family)
        for name, found in families.items():
            values = [family.samples[0].value for family in found]
            value = min(values) if name == _LIMIT else sum(values)
            if name == _SPENT:
                value += self._board.spent[0]
            elif name == _BEGUN:  # /proc knows it to a second, and each worker a little differently
                value = self._board.begun[0]
            found[0].samples = [found[0].samples[0]._replace(value=value)]
            yield found[0]


def _of(process: str) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: process, registry=None).collect()
