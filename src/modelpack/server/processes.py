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

_LEAST = ("process_start_time_seconds", "process_max_fds")  # where a sum would mean nothing


class Processes(Collector):
    """The families `process_*` of this process, or of all workers and the process that started them.

    Args:
        board: Has their numbers, and the time that dead ones took.
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
            value = min(values) if name in _LEAST else sum(values)
            if name == "process_cpu_seconds":
                value += self._board.spent[0]
            found[0].samples = [found[0].samples[0]._replace(value=value)]
            yield found[0]


def _of(process: str) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: process, registry=None).collect()
