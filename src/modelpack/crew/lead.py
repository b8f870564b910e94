"""A step that workers do, seen from the command that leads: what they tell becomes what the step itself would tell."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack import events
from modelpack.crew.lines import raised
from modelpack.crew.order import Order
from modelpack.crew.team import Team
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelpack.artifact import Artifact
    from modelpack.crew import Crew
    from modelpack.crew.link import Link
    from modelpack.recipe import Recipe
    from modelpack.stage import Job
    from modelpack.steps import Step

LOOK = 0.05
"""Seconds between two looks at what the workers said."""
_SETTLE = 0.5
"""Seconds in which a second worker may tell what went wrong, after a first one did."""
_OWN = {"event", "print"}
"""Lines that only the first worker writes, which is this host's."""
AGAIN = "the last checkpoint is kept: the same command goes on from there"


def train(crew: Crew, recipe: Recipe, step: Step, made: Mapping[str, Artifact], job: Job, *, folder: Path) -> None:
    """Let workers run a step's stage, as `Stage.run` would.

    Args:
        crew: All workers, on this host and others.
        recipe: The recipe.
        step: The step.
        made: The artifacts that it reads and names, by the id of their step.
        job: What the step may touch; it has what the first worker measured at the end.
        folder: Empty directory for what passes between the processes.

    Raises:
        StageError: When they cannot finish.
        ModelpackError: What the stage raised in one of them.
    """
    artifacts = {name: made[name] for name in step.inputs}
    station = crew.station()
    team = Team(folder.resolve())
    order = Order(
        path=str(recipe.path.resolve()),
        text=recipe.text,
        overrides=recipe.overrides,
        step=step.id,
        artifacts={name: str(item.path.resolve()) for name, item in artifacts.items()},
        out=str(job.out.resolve()),
        scratch=str(job.scratch.resolve()),
        shared=str(job.shared.resolve()),
        notes=str(team.notes),
        device=job.device,
        first=0,
        size=crew.size,
        wait=crew.wait,
    )
    try:
        for link in crew.links:
            link.send_step(step.id, artifacts, station)
        team.start(order, station, crew.nproc)
        _Watch(crew, job, team).until_done()
    finally:
        team.stop()
        for link in crew.links:
            link.release()


@dataclass
class _Watch:
    """What is known of the workers of a step while they work."""

    crew: Crew
    job: Job
    team: Team
    tries: int = 0
    busy: set[int] = field(default_factory=set)
    failed: dict[int, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    finished: set[int] = field(default_factory=set)

    def until_done(self) -> None:
        """Pass on what the workers tell until they have finished.

        Raises:
            ModelpackError: When they cannot.
        """
        while not (self.result is not None and self.team.ended() == 0 and len(self.finished) == len(self.crew.links)):
            self._listen()
            if self.failed:
                time.sleep(_SETTLE)
                self._listen()
                raise self._failure()
            code = self.team.ended()
            if code is not None:
                self._listen()
                if not self.failed and (code != 0 or self.result is None):
                    raise self._end(None, code, self.team.failure(), list(self.team.printed()))
            time.sleep(LOOK)
        self.job.metrics.update(self.result["metrics"])
        self.job.results.update(self.result["results"])
        self.job.warnings.extend(self.result["warnings"])

    def _listen(self) -> None:
        for rank, line in self.team.lines:
            self._line(rank, line)
        for link in self.crew.links:
            for body in link.told():
                self._from(link, body)

    def _from(self, link: Link, body: Mapping[str, Any]) -> None:
        """Take in what another host says about its own workers.

        Raises:
            StageError: When they ended badly, or it says anything else.
        """
        match body:
            case {"rank": int(rank), "line": dict(line)} if self._host(rank) == link.number and not _OWN & set(line):
                self._line(rank, line)
            case {"ended": 0}:
                self.finished.add(link.number)
            case {"ended": int(code), "failure": dict(failure), "printed": list(printed)}:
                if not self.failed:
                    raise self._end(link, code, failure, printed)
            case _:
                raise StageError("it said something that cannot be understood", where=link.name)

    def _host(self, rank: int) -> int:
        return rank // self.crew.nproc

    def _line(self, rank: int, line: dict[str, Any]) -> None:
        if "event" in line:
            self.job.emit(events.decode(line["event"]))
        elif "print" in line:
            sys.stderr.write(str(line["print"]))
        elif "begun" in line:
            self._begun(rank)
        elif "error" in line:
            self.failed[rank] = line["error"]
        elif "done" in line and rank == 0:
            self.result = line["done"]
        if {"lost", "stopped", "done", "error"} & set(line):
            self.busy.discard(rank)

    def _begun(self, rank: int) -> None:
        if rank == 0:
            self.tries += 1
            if self.tries > 1:
                who = " and ".join(self._who(other) for other in sorted(self.busy))
                text = f"{who or 'a worker'} was lost: all started again (restart {self.tries - 1})"
                self.job.emit(events.Note(self.job.step, text, warning=True))
                self.busy.clear()
        self.busy.add(rank)

    def _who(self, rank: int) -> str:
        links = self.crew.links
        host = "this host" if self._host(rank) == 0 else links[self._host(rank) - 1].name
        return f"rank {rank} on {host}" if links else f"rank {rank}"

    def _failure(self) -> Exception:
        """Give the error of the first worker that told one; what all of them say needs no name."""
        bodies = list(self.failed.values())
        common = len(bodies) > 1 and all(body == bodies[0] for body in bodies)
        rank = min(self.failed)
        return raised(self.failed[rank], "" if common else self._who(rank))

    def _end(self, link: Link | None, code: int, failure: Mapping[str, Any], printed: list[str]) -> StageError:
        """Say how the workers of a host ended, or their agent."""
        host, last = link.name if link else "", "\n  ".join(str(line) for line in printed)
        if "agent" in failure:
            return StageError(f"the workers could not be kept going: {failure['agent']}", where=host, then=last)
        first = link.number * self.crew.nproc if link else 0
        codes = {first + int(worker): int(code) for worker, code in failure.get("workers", {}).items()}
        if not codes:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            return StageError(f"torchrun's agent {how}", where=host, then=AGAIN)
        after = f", after {self.tries - 1} restarts" if self.tries > 1 else ""
        # Those who only noticed that another one was gone, or were stopped because of it, are not to blame.
        blamed = sorted(rank for rank in self.busy if rank in codes) or sorted(self.busy) or sorted(codes)
        rank = blamed[0]
        if rank not in codes:
            return StageError(f"{self._who(rank)} was lost{after}", then=AGAIN)
        how = f"was killed by signal {-codes[rank]}" if codes[rank] < 0 else f"ended with code {codes[rank]}"
        if codes[rank] == -signal.SIGKILL:
            last = f"this usually means that memory ran out: use smaller batches or fewer processes\n  {AGAIN}"
        return StageError(f"{self._who(rank)} {how}{after}", then=last)
