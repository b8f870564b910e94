"""Writing that survives: bytes that are on the disk when we say so, and refusals that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

from modelpack.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REASONS = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space and run the same command again; finished steps are kept",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EROFS: ("the file system is read-only", "choose a writable place with --store"),
    errno.EACCES: ("permission denied", "choose a writable place with --store, or correct its permissions"),
    errno.EPERM: ("permission denied", "choose a writable place with --store, or correct its permissions"),
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        what, then = _REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StoreError(f"cannot write: {what}", where=str(error.filename or path), then=then) from error


def sync(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content so that every reader sees all of the old or all of the new."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)
