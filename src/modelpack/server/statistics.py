"""What a model has done since it was loaded: counts and times, in the terms of Triton's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batching import Run


@dataclass
class Tally:
    """How often something happened, and how long it took together, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count something that happened `count` times, at `seconds` each."""
        self.count += count
        self.ns += int(seconds * 1e9) * count


@dataclass
class Steps:
    """The steps of a run: joining inputs, computing, splitting outputs."""

    input: Tally = field(default_factory=Tally)
    infer: Tally = field(default_factory=Tally)
    output: Tally = field(default_factory=Tally)

    def add(self, run: Run, count: int = 1) -> None:
        """Count one run for each of `count` requests."""
        self.input.add(run.joined - run.started, count)
        self.infer.add(run.ended - run.joined, count)
        self.output.add(run.split - run.ended, count)


@dataclass
class Statistics:
    """Requests that succeeded and failed, their time in the queue and in each step, and runs by their rows."""

    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    queue: Tally = field(default_factory=Tally)
    steps: Steps = field(default_factory=Steps)
    batches: dict[int, Steps] = field(default_factory=dict)
    inferences: int = 0  # rows
    executions: int = 0  # runs
    last: int = 0  # milliseconds since 1970

    def ran(self, run: Run) -> None:
        """Count one run that ended well."""
        self.executions += 1
        self.inferences += run.rows
        self.last = int(time.time() * 1000)
        self.steps.add(run, len(run.jobs))
        self.batches.setdefault(run.rows, Steps()).add(run)

    def answered(self, queued: float, seconds: float) -> None:
        """Count one request that waited `queued` of its `seconds` and got its answer."""
        self.success.add(seconds)
        self.queue.add(queued)

    def failed(self, seconds: float) -> None:
        """Count one request that was taken and got none."""
        self.fail.add(seconds)
