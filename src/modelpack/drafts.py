"""Directories being filled, until the store seals them or they vanish."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack import canonical
from modelpack.artifact import File
from modelpack.disk import sync, writing
from modelpack.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SETTLED = 60.0
"""Seconds after which a draft without an owner has been left behind."""


@dataclass(frozen=True)
class Draft:
    """A directory being filled; it becomes an artifact by `Store.commit` or vanishes."""

    path: Path


@contextlib.contextmanager
def opened(room: Path, root: Path) -> Iterator[Draft]:
    """Give an empty directory, which is removed in the end unless it was moved away.

    Args:
        room: Directory of drafts; those that killed processes left there go first.
        root: The store's, which is named where it cannot be written.
    """
    with writing(root):
        _sweep(room)
        path = room / f"{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir()
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # until this process ends, however it ends: see `_sweep`
        yield Draft(path)
    finally:
        os.close(handle)
        shutil.rmtree(path, ignore_errors=True)


def _sweep(room: Path) -> None:
    """Remove the drafts of processes that were killed: nobody holds them, and they are not just being made."""
    for path in room.iterdir():
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if not is_directory(path) or time.time() - path.stat().st_mtime < _SETTLED:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(handle)


def sealed(draft: Draft) -> tuple[File, ...]:
    """Make the files of a draft read-only, sync them, and list them by name.

    Raises:
        StoreError: When one is a link, or no plain file.
    """
    return tuple(sorted(_seal(path, draft.path) for path in draft.path.rglob("*") if not is_directory(path)))


def is_directory(path: Path) -> bool:
    """Whether a path is a directory itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _seal(path: Path, root: Path) -> File:
    name = path.relative_to(root).as_posix()
    if path.is_symlink() or not path.is_file():
        raise StoreError("a stage left something that is no plain file", where=name)
    path.chmod(0o444)
    sync(path)
    return File(name, path.stat().st_size, canonical.file_digest(path))
