"""Blobs fetched into the cache: resumed where a connection broke, whole only when the digest says so."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from typing import IO, TYPE_CHECKING, Any

from modelpack.container import layout
from modelpack.container.blob import Blob
from modelpack.container.http import received
from modelpack.container.patience import BrokenError, persist
from modelpack.container.reference import DIGEST
from modelpack.errors import MissingError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelpack.container.http import Registry

MAX_BLOB = 64 << 30
"""Largest blob that is downloaded, in bytes."""
_RANGE = re.compile(r"bytes (\d+)-\d+/")


def place(cache: Path, digest: str) -> Path:
    """Say where the cache keeps a blob."""
    return cache / "blobs" / "sha256" / digest.removeprefix("sha256:")


def cached(cache: Path, digest: str) -> Blob:
    """Give a blob that was fetched before.

    Raises:
        MissingError: When it was not.
    """
    path = place(cache, digest)
    if not DIGEST.fullmatch(digest) or not path.is_file():
        raise MissingError(f"{digest} is not in the cache", where=str(cache), then="build once without --offline")
    return Blob(path, path.stat().st_size, digest=digest)


def keep(cache: Path, digest: str, data: bytes) -> None:
    """Put a small blob into the cache."""
    path = place(cache, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def download(registry: Registry, descriptor: Any, cache: Path) -> Blob:
    """Fetch one blob into the cache, refusing other bytes than its descriptor says.

    What came before a connection broke, or before the process was killed, is not asked for again (RFC 9110, "Range").

    Raises:
        BrokenError: When the connection breaks again and again.
        StageError: When the descriptor is malformed, or the bytes differ from it.
    """
    digest, size = _meant(descriptor, str(registry.name))
    path, told = place(cache, digest), 0

    def tell(done: int) -> None:
        nonlocal told
        registry.moved(max(0, min(done, size) - told))
        told = max(told, min(done, size))

    if not path.is_file() or path.stat().st_size != size:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, size) as part:
            if part is not None:
                _fill(_Draft(part, size, tell), registry, digest)
                os.fsync(part.fileno())
                path.with_name(f"{path.name}.part").replace(path)
    tell(size)
    return Blob(path, size, digest=digest)


def _meant(descriptor: Any, where: str) -> tuple[str, int]:
    """Read the digest and the size that a descriptor promises.

    Raises:
        StageError: When they cannot be right.
    """
    described = layout.mapping(descriptor)
    digest, size = described.get("digest"), described.get("size")
    named = isinstance(digest, str) and DIGEST.fullmatch(digest)
    if not named or isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_BLOB:
        raise StageError("the manifest describes a blob without a usable digest and size", where=where)
    return str(digest), size


@contextlib.contextmanager
def _alone(path: Path, size: int) -> Iterator[IO[bytes] | None]:
    """Open what another try left, with no other process at it; None where one finished the blob meanwhile."""
    part = path.with_name(f"{path.name}.part")
    while True:
        with part.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # until this process ends, however it ends
            if path.is_file() and path.stat().st_size == size:
                yield None
                return
            if os.fstat(stream.fileno()).st_nlink:  # else its process gave up on it, between our opening and locking
                yield stream
                return


class _Draft:
    """A blob of `size` bytes as far as it has come."""

    def __init__(self, stream: IO[bytes], size: int, tell: Callable[[int], None]) -> None:
        self._stream, self.size, self._tell = stream, size, tell
        self._hash = hashlib.sha256()
        self.done = 0
        stream.seek(0)
        while piece := stream.read(1 << 20):
            self._hash.update(piece)
            self.done += len(piece)
        self.found = self.done

    def restart(self) -> None:
        """Forget everything."""
        self._stream.truncate(0)
        self._hash, self.done, self.found = hashlib.sha256(), 0, 0

    def add(self, piece: bytes) -> None:
        """Append; more than the size is counted, not written."""
        self.done += len(piece)
        self._tell(self.done)
        if self.done <= self.size:
            self._hash.update(piece)
            self._stream.write(piece)
            self._stream.flush()  # kept if the process is killed now

    def intact(self, digest: str) -> bool:
        """Whether it is the whole blob."""
        return self.done == self.size and f"sha256:{self._hash.hexdigest()}" == digest

    def discard(self) -> None:
        """Remove the file: nothing in it can be trusted."""
        os.unlink(self._stream.name)  # noqa: PTH108 - an open file knows its name as text


def _fill(draft: _Draft, registry: Registry, digest: str) -> None:
    """Receive what is missing, and compare the whole with its digest.

    Raises:
        BrokenError: When the connection breaks again and again without a byte between.
        StageError: When the bytes differ.
    """
    if draft.done < draft.size:
        persist(lambda: _receive(draft, registry, digest), lambda: draft.done)
    if draft.intact(digest):
        return
    if not draft.found:
        draft.discard()
        raise StageError(f"the registry sent other bytes than {digest}", where=str(registry.name))
    draft.restart()  # what an earlier try left may be what is wrong
    _fill(draft, registry, digest)


def _receive(draft: _Draft, registry: Registry, digest: str) -> None:
    headers = {"Range": f"bytes={draft.done}-"} if draft.done else {}
    response = registry.send("GET", f"blobs/{digest}", headers=headers, allow=(200, 206, 416), again=False)
    begins = _RANGE.match(response.headers.get("Content-Range", ""))
    if response.status_code == 416 or (begins and int(begins[1]) != draft.done):
        response.close()
        draft.restart()
        raise BrokenError("the registry cannot go on where the connection broke", where=str(registry.name))
    if response.status_code == 200:
        draft.restart()
    with contextlib.closing(received(response, str(registry.name))) as pieces:
        for piece in pieces:
            draft.add(piece)
            if draft.done > draft.size:
                return
