"""Time: what a piece of work takes, and what models take in turns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rows import Feed

PATIENCE = 30.0
"""Seconds that the turns of one shape may take."""


class Clock:
    """Seconds of this process and on the clock that a block of code takes."""

    cpu = wall = 0.0

    def __enter__(self) -> Self:
        """Start."""
        self.cpu, self.wall = -time.process_time(), -time.perf_counter()
        return self

    def __exit__(self, *_raised: object) -> None:
        """Stop."""
        self.cpu, self.wall = self.cpu + time.process_time(), self.wall + time.perf_counter()


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def turns(paths: Mapping[str, Path], feed: Feed, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Time one feed on one thread, the models taking turns; no turn begins after `PATIENCE` once there are ten."""
    sessions = {name: session(path, 1) for name, path in paths.items()}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    start = time.perf_counter()
    for turn in range(rounds + warmup):
        if turn >= warmup + 10 and time.perf_counter() - start > PATIENCE:
            break
        for name, opened in sessions.items():
            began = time.perf_counter()
            opened.run(None, feed)
            if turn >= warmup:
                taken[name].append(time.perf_counter() - began)
    return taken
