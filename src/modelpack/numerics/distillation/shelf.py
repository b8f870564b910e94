"""Bytes on disk by their keys: written once, read by memory mapping, shared by any number of processes.

::

    0000.index    32 bytes an item: its key, where in the data it begins, how long it is, CRC-32 of key and item
    0000.data     the items, one after another

Every process appends to a volume of its own, which it holds by a lock, and reads all. An item's bytes are written
before its line of the index, so that a process killed at any moment leaves whole items and a tail that nothing points
to; what a power failure left half written fails its checksum and counts as absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import weakref
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KEY = 16
"""Bytes of a key."""

_PLACE = struct.Struct("<QII")
_LINE = KEY + _PLACE.size


class _Volume:
    """One pair of files, as far as it was read."""

    def __init__(self, index: Path) -> None:
        self.index, self.data = index, index.with_suffix(".data")
        self.places: dict[bytes, bytes] = {}
        self._read = 0
        self._map: mmap.mmap | None = None

    def refresh(self) -> None:
        """Read the lines that were added since."""
        with self.index.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read()
        whole = len(lines) - len(lines) % _LINE
        for start in range(0, whole, _LINE):
            self.places[lines[start : start + KEY]] = lines[start + KEY : start + _LINE]
        self._read += whole

    def item(self, key: bytes, place: bytes) -> memoryview | None:
        """Give an item's bytes; None where they are not what was written."""
        begin, size, check = _PLACE.unpack(place)
        if size == 0:
            return memoryview(b"") if zlib.crc32(key) == check else None
        if self._map is None or len(self._map) < begin + size:
            with self.data.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < begin + size:
                    return None
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        found = memoryview(self._map)[begin : begin + size]
        return found if zlib.crc32(found, zlib.crc32(key)) == check else None


class Shelf:
    """Items in one directory of a room; directories of a room share a limit, and the one unused longest goes first."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Open a directory, creating what is missing, and take a volume to write to.

        Args:
            directory: Its parent is the room.
            limit: Bytes that the room may hold.

        Raises:
            OSError: When it cannot be written.
        """
        self._directory, self._limit = directory, limit
        self._index, self._own = _taken(directory)
        self._data = os.open(self._own.data, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._closing = weakref.finalize(self, _let_go, self._index, self._data)
        self._volumes = {self._own.index.name: self._own}
        self._settle()
        self._refresh()
        os.utime(directory)

    def _settle(self) -> None:
        """Cut off what a killed process left without a line, or as half a line."""
        os.ftruncate(self._index, os.fstat(self._index).st_size // _LINE * _LINE)
        self._own.refresh()
        ends = (begin + size for begin, size, _ in map(_PLACE.unpack, self._own.places.values()))
        os.ftruncate(self._data, min(os.fstat(self._data).st_size, max(ends, default=0)))

    @property
    def size(self) -> int:
        """Bytes that the directory holds."""
        return _size(self._directory)

    def close(self) -> None:
        """Let go of the volume."""
        self._closing()

    def find(self, keys: Sequence[bytes]) -> list[memoryview] | None:
        """Give the items of all keys, or None where one is absent."""
        found = self._found(keys)
        if found is None:
            self._refresh()
            found = self._found(keys)
        return found

    def _found(self, keys: Sequence[bytes]) -> list[memoryview] | None:
        items = []
        for key in keys:
            item = self._item(key)
            if item is None:
                return None
            items.append(item)
        return items

    def _item(self, key: bytes) -> memoryview | None:
        for volume in self._volumes.values():
            place = volume.places.get(key)
            if place is not None:
                item = volume.item(key, place)
                if item is not None:
                    return item
                del volume.places[key]
        return None

    def _refresh(self) -> None:
        for path in sorted(self._directory.glob("*.index")):
            if path != self._own.index:
                self._volumes.setdefault(path.name, _Volume(path)).refresh()

    def add(self, keys: Sequence[bytes], items: Sequence[bytes]) -> int | None:
        """Write items whose keys are new; gives how many those were, or None where there is no room for them.

        Raises:
            OSError: When they cannot be written.
        """
        new = dict(zip(keys, items, strict=True))
        for volume in self._volumes.values():
            for key in volume.places.keys() & new.keys():
                del new[key]
        size = sum(map(len, new.values())) + _LINE * len(new)
        if not self._fits(size):
            return None
        begin, lines = os.fstat(self._data).st_size, {}
        for key, item in new.items():
            lines[key] = _PLACE.pack(begin, len(item), zlib.crc32(item, zlib.crc32(key)))
            begin += len(item)
        _append(self._data, b"".join(new.values()))
        _append(self._index, b"".join(key + place for key, place in lines.items()))
        self._own.places |= lines
        return len(new)

    def _fits(self, size: int) -> bool:
        """Whether the room can hold that much more, after others made way."""
        wanted = self.size + size
        if wanted > self._limit:
            return False
        others = {path: _size(path) for path in self._directory.parent.iterdir() if path != self._directory}
        for path in sorted(others, key=_used):
            if wanted + sum(others.values()) <= self._limit:
                break
            _remove(path)
            others[path] = _size(path)
        return wanted + sum(others.values()) <= self._limit


def _taken(directory: Path) -> tuple[int, _Volume]:
    """Lock the first volume that no other process holds; gives the open index."""
    for number in range(10_000):
        path = directory / f"{number:04d}.index"
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino == path.stat().st_ino:  # else it was removed before it was locked
                return handle, _Volume(path)
        os.close(handle)
    raise OSError(None, "every volume is in use", str(directory))


def _remove(directory: Path) -> None:
    """Remove a directory, unless a process is using it."""
    with contextlib.ExitStack() as held, contextlib.suppress(BlockingIOError, FileNotFoundError):
        for path in directory.glob("*.index"):
            fcntl.flock(held.enter_context(path.open("rb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)


def _used(directory: Path) -> float:
    try:
        return directory.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def _let_go(*handles: int) -> None:
    for handle in handles:
        os.close(handle)


def _append(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def _size(directory: Path) -> int:
    return sum(_sizes(directory))


def _sizes(directory: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            yield entry.stat().st_size
