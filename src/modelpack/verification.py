"""Whether a store still holds what was put into it: every byte that has a known hash, every name, every record."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.artifact import Artifact
from modelpack.errors import ModelpackError, StoreError, UsageError
from modelpack.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from modelpack.record import Run
    from modelpack.store import Store

_ID = re.compile(r"[0-9a-f]{64}")

Tell = Callable[[int, int], None]
"""Told how many things are done, and of how many."""


@dataclass(frozen=True)
class Report:
    """What verification found.

    Attributes:
        artifacts: How many artifacts were read.
        size: How many bytes of payload they should hold.
        problems: What is wrong, each beginning with the file's name; empty when all is well.
    """

    artifacts: int
    size: int
    problems: tuple[str, ...]


def verify_artifacts(paths: Sequence[Path], tell: Tell = lambda _done, _total: None) -> Report:
    """Verify artifacts by their directories."""
    problems: list[str] = []
    size = 0
    for done, path in enumerate(paths):
        tell(done, len(paths))
        try:
            artifact = Artifact.load(path)
            if path.name != artifact.id or path.parent.name != artifact.id[:2]:
                problems.append(f"{path}: the directory is named unlike its id {artifact.id}")
            else:
                problems += artifact.verify()
            size += sum(item.size for item in artifact.manifest.files)
        except ModelpackError as error:
            problems.append(f"{error.where}: {error.what}")
        except OSError as error:
            problems.append(f"{error.filename or path}: cannot be read: {error.strerror}")
    tell(len(paths), len(paths))
    return Report(len(paths), size, tuple(problems))


def verify_run(store: Store, run: Run, tell: Tell = lambda _done, _total: None) -> Report:
    """Verify the artifacts of a run and all that they were made from; one that is gone is a problem here."""
    known = {path.name: path for path in store.artifacts()}
    gone = [f"{run.name}: the artifact {step.artifact} of {step.id} is gone" for step in run.steps]
    missing = [text for text, step in zip(gone, run.steps, strict=True) if step.artifact not in known]
    wanted = Runs(store).lineage(step.artifact for step in run.steps)
    report = verify_artifacts([known[name] for name in sorted(wanted)], tell)
    return Report(report.artifacts, report.size, (*missing, *report.problems))


def verify_store(store: Store, tell: Tell = lambda _done, _total: None) -> Report:
    """Verify everything in a store: artifacts, the cache that points to them, and the records of runs."""
    paths = store.artifacts()
    report = verify_artifacts(paths, tell)
    more = [*_strangers(store.root / "artifacts", paths), *_cache(store), *_records(store)]
    return Report(report.artifacts, report.size, (*report.problems, *more))


def _strangers(root: Path, paths: Sequence[Path]) -> Iterator[str]:
    """Find what lies between the artifacts and is none."""
    for path in sorted(root.glob("*")):
        if not re.fullmatch(r"[0-9a-f]{2}", path.name) or not path.is_dir():
            yield f"{path}: not part of the store"
    for path in paths:
        if not path.is_dir() or path.is_symlink():
            yield f"{path}: not an artifact"


def _cache(store: Store) -> Iterator[str]:
    """Compare each cache entry with the artifact that it names; one whose artifact is gone is harmless."""
    for entry in sorted((store.root / "cache").glob("*")):
        try:
            artifact = store.find(entry.name) if _ID.fullmatch(entry.name) else None
            if not _ID.fullmatch(entry.name):
                yield f"{entry}: not part of the store"
            elif artifact is not None and artifact.manifest.fingerprint != entry.name:
                yield f"{entry}: names an artifact of other work, {artifact.id}"
        except ModelpackError as error:
            if error.where == str(entry):  # damage inside the artifact was reported with the artifact
                yield f"{entry}: {error.what}"


def _records(store: Store) -> Iterator[str]:
    """Read every run's record, its recipe, and which run is current."""
    runs = Runs(store)
    for recipe in runs.recipes():
        for number in runs.numbers(recipe):
            yield from _told(functools.partial(_record, runs, f"{recipe}@{number}"))
        current = store.root / "runs" / recipe / "current"
        if current.exists():
            yield from _told(functools.partial(_current, runs, recipe, current))


def _record(runs: Runs, name: str) -> None:
    runs.text(runs.get(name))


def _current(runs: Runs, recipe: str, path: Path) -> None:
    if runs.current(recipe) is None:
        raise StoreError("names no run", where=str(path))


def _told(look: Callable[[], object]) -> Iterator[str]:
    """Look, and tell what was wrong; a run that was killed before its first line is nothing wrong."""
    try:
        look()
    except UsageError:
        return
    except ModelpackError as error:
        yield f"{error.where}: {error.what}"
