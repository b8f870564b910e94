"""What happens during a run, as lines: plain ones for logs, JSON ones for programs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from modelpack import quantities
from modelpack.cli.output import encode, out
from modelpack.events import (
    BudgetChecked,
    Event,
    Metric,
    Note,
    Progress,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = 10.0
"""Seconds between two lines of progress in a log."""


@dataclass(frozen=True)
class Stream:
    """One event a line, on the stream of results."""

    results: TextIO

    def __call__(self, event: Event) -> None:
        """Show one event."""
        out(encode(event.to_json()), self.results)


@dataclass(frozen=True)
class Silence:
    """Nothing but warnings, when they are wanted."""

    warnings: bool = False

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.warnings and isinstance(event, Note) and event.warning:
            print(sentence(event), file=sys.stderr)


@dataclass
class Pace:
    """How fast a piece of work goes.

    Attributes:
        clock: Gives seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _key: tuple[str, str] = ("", "")
    _begun: float = 0.0
    _from: int = 0

    def of(self, event: Progress) -> str:
        """Say how far the work is, how fast it goes and how long it still takes."""
        now = self.clock()
        if (event.step, event.label) != self._key or event.done < self._from:
            self._key, self._begun, self._from = (event.step, event.label), now, event.done
        rate = (event.done - self._from) / (now - self._begun) if now > self._begun else 0.0
        told = [f"{event.done}/{event.total}" if event.total else str(event.done)]
        if rate > 0:
            told.append(f"{quantities.significant(rate)}/s")
            if event.total > event.done:
                told.append(f"{quantities.duration((event.total - event.done) / rate)} left")
        return ", ".join(told)


@dataclass
class Lines:
    """One line an event, on standard error; progress at most every ten seconds."""

    verbose: bool = False
    clock: Callable[[], float] = time.monotonic
    _pace: Pace = field(default_factory=Pace)
    _told: float = 0.0

    def __post_init__(self) -> None:
        self._told = self.clock()
        self._pace.clock = self.clock

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Progress):
            told = self._pace.of(event)
            if self.clock() - self._told < EVERY:
                return
            text = f"  {event.step}: {event.label or 'working'} {told}"
        else:
            text = sentence(event, verbose=self.verbose)
        self._told = self.clock()
        if text:
            print(text, file=sys.stderr, flush=True)


def sentence(event: Event, *, verbose: bool = False) -> str:
    """Tell an event in one line; empty for those that only details-lovers want."""
    match event:
        case RunStarted():
            return f"{event.recipe}@{event.run} on {event.device}: {len(event.steps)} steps"
        case StepStarted():
            return f"  {event.step}: runs ({event.why})" if event.why else f"  {event.step}: runs"
        case StepFinished(cached=True):
            return f"  {event.step}: in the store"
        case StepFinished():
            return f"  {event.step}: done in {quantities.duration(event.seconds)}"
        case Note(warning=True):
            return f"  {event.step}: warning: {event.text}"
        case Note():
            return f"  {event.step}: {event.text}"
        case Metric() if verbose:
            return f"  {event.step}: {event.name} = {quantities.figure(event.name, event.value)}"
        case BudgetChecked():
            word = "met" if event.met else "NOT MET"
            measured = quantities.figure(event.name, event.measured, like=event.limit)
            return (
                f"  {event.step}: budget {event.name} {quantities.limit(event.name, event.limit)}: {measured}, {word}"
            )
        case RunFinished() if event.status != "succeeded":
            return f"{event.recipe}@{event.run} {event.status} after {quantities.duration(event.seconds)}"
    return ""
