"""Files put into a directory without touching what a user wrote: each is remembered by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError, UsageError, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.deploy.facts import Files

RECORD = ".modelpack-deploy.json"
"""What was written here: target → file → SHA-256."""


@dataclass
class Outcome:
    """What became of the files, each in order of name."""

    wrote: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def write(files: Files, directory: Path, target: str, *, force: bool = False) -> Outcome:
    """Write files, and remove those of an earlier time that are no longer made.

    Args:
        files: What to write.
        directory: Where.
        target: Whose files they are; those of other targets are left alone.
        force: Whether files that were not written here, or were edited since, are replaced.

    Raises:
        UsageError: When something is there that is not ours; nothing is written then.
        StageError: When a file cannot be written.
    """
    record = _read(directory / RECORD)
    known = record.get(target, {})
    fresh = {name: _digest(files[name]) for name in sorted(files)}
    there = {name: _found(directory, name) for name in fresh.keys() | known.keys()}
    strangers = [name for name in fresh if there[name] not in ("", fresh[name], known.get(name))]
    if strangers and not force:
        raise UsageError(
            f"{listed(strangers)} {'is' if len(strangers) == 1 else 'are'} there and not as modelpack wrote it",
            where=str(directory),
            then="name another --output, or replace it with --force",
        )
    outcome = Outcome()
    try:
        for name, digest in fresh.items():
            if there[name] != digest:
                _put(files[name], directory / name)
            (outcome.unchanged if there[name] == digest else outcome.wrote).append(name)
        for name in sorted(known.keys() - fresh.keys()):
            if there[name] == known[name]:  # an edited one is the user's now
                (directory / name).unlink()
                outcome.removed.append(name)
        text = json.dumps({"schema": 1, "targets": {**record, target: fresh}}, indent=1, sort_keys=True)
        _put(text + "\n", directory / RECORD)
    except OSError as error:
        raise StageError(f"cannot write: {error.strerror}", where=str(error.filename or directory)) from error
    return outcome


def _read(path: Path) -> Mapping[str, Mapping[str, str]]:
    """Read what was written earlier."""
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        targets: Mapping[str, Mapping[str, str]] = found["targets"]
        sound = found["schema"] == 1 and not any(
            ".." in Path(name).parts for names in targets.values() for name in names
        )
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the record of what was written here cannot be read: {error}", where=str(path), then="delete it"
        ) from error
    if not sound:
        raise UsageError("the record of what was written here is of another version", where=str(path), then="delete it")
    return targets


def _found(directory: Path, name: str) -> str:
    """Give the hash of what is there: empty for nothing, a word for what is no file."""
    path = directory / name
    try:
        blocked = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocked is not None:
            raise UsageError(
                "this is a file, a directory is expected", where=str(blocked), then="name another --output"
            )
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return "no file"
        return _digest(path) if path.exists() else ""
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", where=str(path)) from error


def _digest(content: str | Path) -> str:
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _put(content: str | Path, path: Path) -> None:
    """Write one file at once: a reader sees the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if isinstance(content, str):
            draft.write_bytes(content.encode())
        else:
            shutil.copyfile(content, draft)
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(21, "a directory is there", str(path))
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
