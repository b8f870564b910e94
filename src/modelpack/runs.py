"""Executions and their history: a run's number is its version.

::

    runs/<recipe>/0007/   run.json  recipe.yaml  events.jsonl  (traceback.txt)
    runs/<recipe>/current "0007"
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.artifact import Artifact, Kind
from modelpack.disk import write_atomic, writing
from modelpack.errors import StoreError, UsageError, did_you_mean
from modelpack.record import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from modelpack.events import Event
    from modelpack.record import Run, StepRun
    from modelpack.store import Store

_REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(@(?P<number>\d+))?")


class Journal:
    """Writes one run while it happens; what is on disk is true at every moment."""

    def __init__(self, directory: Path, run: Run, lock: IO[str]) -> None:
        self.directory, self.run = directory, run
        self._lock = lock
        self._clock = time.monotonic()
        self._events = (directory / "events.jsonl").open("a")

    def event(self, event: Event) -> None:
        """Append an event."""
        with writing(self.directory / "events.jsonl"):
            self._events.write(json.dumps(event.to_json(), default=str) + "\n")
            self._events.flush()

    def update(self, **changes: Any) -> None:
        """Replace facts of the run."""
        self.run = replace(self.run, **changes, seconds=round(time.monotonic() - self._clock, 3))
        with writing(self.directory):
            write_atomic(self.directory / "run.json", encode(self.run))

    def step(self, step: StepRun) -> None:
        """Add a finished step."""
        self.update(steps=(*self.run.steps, step))

    def close(self) -> None:
        """Release the run; its status no longer changes."""
        with contextlib.suppress(OSError):  # what a full disk refused was told when it was written
            self._events.close()
        self._lock.close()


class Runs:
    """The history kept in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.root = store.root / "runs"

    @contextlib.contextmanager
    def begin(self, run: Run, recipe_text: str) -> Iterator[Journal]:
        """Take the next number and open its journal.

        `current` moves to the run when it ends as ``succeeded``, unless a newer one has ended before it.
        """
        with writing(self.root):
            directory = self._take_number(self.root / run.recipe)
            lock = (directory / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            (directory / "recipe.yaml").write_bytes(recipe_text.encode())
            text = canonical.digest(recipe_text)
            journal = Journal(directory, replace(run, number=int(directory.name), text=text), lock)
        try:
            journal.update()
            yield journal
            current = self.current(run.recipe)
            if journal.run.status == "succeeded" and (current is None or current.number < journal.run.number):
                with writing(directory):
                    write_atomic(directory.parent / "current", directory.name.encode())
        finally:
            journal.close()

    def _take_number(self, parent: Path) -> Path:
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0)
        while True:
            number += 1
            directory = parent / f"{number:04d}"
            try:
                directory.mkdir()
            except FileExistsError:
                continue
            return directory

    def recipes(self) -> list[str]:
        """Name the recipes that ever ran."""
        return sorted(path.name for path in self.root.glob("*") if path.is_dir())

    def list(self, recipe: str | None = None) -> list[Run]:
        """List runs, oldest first; of every recipe when none is named."""
        names = [recipe] if recipe is not None else self.recipes()
        found = []
        for name in names:
            found += [run for number in self.numbers(name) if (run := self._read(name, number)) is not None]
        return sorted(found, key=lambda run: (run.started, run.number))

    def numbers(self, recipe: str) -> Sequence[int]:
        """List the numbers that runs of a recipe took, whether or not they wrote a record."""
        return sorted(int(path.name) for path in (self.root / recipe).glob("*") if path.name.isdigit())

    def directory(self, run: Run) -> Path:
        """Give the directory of a run."""
        return self.root / run.recipe / f"{run.number:04d}"

    def _read(self, name: str, number: int) -> Run | None:
        path = self.root / name / f"{number:04d}" / "run.json"
        try:
            run = decode(path.read_bytes(), str(path))
        except FileNotFoundError:  # killed between taking the number and the first line
            return None
        except OSError as error:
            raise StoreError(f"the run's record cannot be read: {error.strerror}", where=str(path)) from error
        if (run.recipe, run.number) != (name, number):
            raise StoreError(f"the run's record is that of {run.name}", where=str(path))
        if run.status == "running" and not self._alive(path.parent):
            return replace(run, status="interrupted")
        return run

    def text(self, run: Run) -> str:
        """Give the recipe of a run, word for word.

        Raises:
            StoreError: When it cannot be read or was changed.
        """
        path = self.directory(run) / "recipe.yaml"
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"the run's recipe cannot be read: {error}", where=str(path)) from error
        if canonical.digest(text) != run.text:
            raise StoreError("the run's recipe was changed after it was written", where=str(path))
        return text

    def _alive(self, directory: Path) -> bool:
        try:
            with (directory / "lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def current(self, recipe: str) -> Run | None:
        """Give the run that `current` names."""
        try:
            number = int((self.root / recipe / "current").read_text())
        except (OSError, ValueError):
            return None
        return self._read(recipe, number)

    def newest(self) -> Run:
        """Give the current run of the recipe that succeeded last: after a rollback, the run that was gone back to.

        Raises:
            UsageError: When none did.
        """
        done = [run for run in self.list() if run.status == "succeeded"]
        if not done:
            raise UsageError(
                "no run has succeeded in this store",
                where=str(self.store.root),
                then="run `modelpack compress RECIPE` first, or name another --store",
            )
        return self.current(done[-1].recipe) or done[-1]

    def get(self, reference: str) -> Run:
        """Find a run by ``name`` (its current one) or ``name@number``.

        Raises:
            UsageError: When there is none.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None or match["name"] not in self.recipes():
            raise UsageError(
                f"no run is called '{reference}'",
                where=str(self.store.root),
                then=did_you_mean(reference.partition("@")[0], self.recipes()) or "`modelpack runs` lists them",
            )
        run = self._read(match["name"], int(match["number"])) if match["number"] else self.current(match["name"])
        if run is None:
            then = f"`modelpack runs {match['name']}` lists them"
            raise UsageError(
                f"there is no run '{reference}'" if match["number"] else f"no run of '{reference}' has succeeded yet",
                then=then,
            )
        return run

    def rollback(self, recipe: str, number: int) -> Run:
        """Make an earlier, successful run the current one.

        Raises:
            UsageError: When there is no such run, or it did not succeed, or its artifacts are gone.
        """
        run = self.get(f"{recipe}@{number}")
        if run.status != "succeeded":
            raise UsageError(f"{run.name} {run.status}: only a run that succeeded can be current", then=run.error)
        known = {path.name for path in self.store.artifacts()}
        for step in run.steps:
            if step.artifact not in known:
                what = f"{run.name} cannot be current: the result of '{step.id}' was removed"
                raise UsageError(what, then="run its recipe again; `modelpack diff` shows what it was")
        with writing(self.root):
            write_atomic(self.root / recipe / "current", f"{number:04d}".encode())
        return run

    def lineage(self, artifacts: Iterable[str]) -> set[str]:
        """Give the ids of artifacts and of everything they were made from; ids that are gone are left out."""
        known = {path.name: path for path in self.store.artifacts()}
        queue, found = list(artifacts), set()
        while queue:
            identity = queue.pop()
            if identity in found or identity not in known:
                continue
            found.add(identity)
            queue += parents(Artifact.load(known[identity]))
        return found

    def kept(self, last: int) -> set[str]:
        """Give the ids that cleaning keeps: each recipe's current and `last` newest runs, with all ancestors.

        Images that were built of a kept model are kept too: `modelpack build` leaves no run behind.
        """
        ids = set()
        for recipe in self.recipes():
            runs = self.list(recipe)
            current = self.current(recipe)
            for run in [*runs[len(runs) - last if last < len(runs) else 0 :], *([current] if current else [])]:
                ids |= {step.artifact for step in run.steps}
        kept = self.lineage(ids)
        return kept | {image for image, model in self._images() if model in kept}

    def _images(self) -> Iterator[tuple[str, str]]:
        """Give the id of every image with the id of the model in it; damage is for `verify` to tell."""
        for path in self.store.artifacts():
            with contextlib.suppress(StoreError):
                artifact = Artifact.load(path)
                if artifact.kind is Kind.IMAGE:
                    yield artifact.id, str(artifact.manifest.work.get("model"))


def parents(artifact: Artifact) -> list[str]:
    """List the ids of the artifacts that one was made from."""
    work = artifact.manifest.work
    return [*([work["model"]] if work.get("model") else []), *work.get("steps", {}).values()]


def started_now() -> str:
    """Give the present moment as UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
