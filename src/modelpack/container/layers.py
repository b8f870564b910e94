"""Image layers, bit for bit: the same entries give the same bytes on every machine and in every year.

Names are sorted, owners are 0:0, times are one constant, directories are explicit, and a header says nothing that the
entry does not (POSIX.1-2001 ustar; a PAX record only for a name or size that ustar cannot hold).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCK = 512
CHUNK = 1 << 20
DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
_OCTAL_SIZE = 8**11


@dataclass(frozen=True)
class Member:
    """A file inside a wheel, read when it is written.

    Attributes:
        archive: The wheel.
        name: The file's name in it.
        size: Its bytes.
        offset: Where its local header begins.
        packed: Its bytes as they are stored.
        deflated: Whether they are compressed.
    """

    archive: Path
    name: str
    size: int
    offset: int
    packed: int
    deflated: bool

    def chunks(self) -> Iterator[bytes]:
        """Give its bytes piece by piece (ZIP application note 6.3, 4.3.7); opening the whole archive takes longer."""
        with self.archive.open("rb") as stream:
            stream.seek(self.offset)
            name, extra = struct.unpack("<26x2H", stream.read(30))
            stream.seek(self.offset + 30 + name + extra)
            inflate = zlib.decompressobj(-zlib.MAX_WBITS) if self.deflated else None
            left = self.packed
            while left and (piece := stream.read(min(CHUNK, left))):
                left -= len(piece)
                yield inflate.decompress(piece) if inflate else piece
            if inflate:
                yield inflate.flush()


class Readable(Protocol):
    """Bytes that lie somewhere else until they are needed."""

    @property
    def size(self) -> int:
        """How many there are."""

    def chunks(self) -> Iterator[bytes]:
        """Give them piece by piece."""


Content = bytes | Path | Readable


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Read a stream to its end, a megabyte at a time."""
    while piece := stream.read(CHUNK):
        yield piece


@dataclass(frozen=True)
class Entry:
    """One file of a layer.

    Attributes:
        name: POSIX path in the image without the leading slash.
        content: Its bytes, or where to read them.
        mode: Permission bits.
    """

    name: str
    content: Content
    mode: int = FILE_MODE

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if path.is_absolute() or not self.name or ".." in path.parts or str(path) != self.name or "\0" in self.name:
            raise ValueError(f"not a relative POSIX name: {self.name!r}")

    @property
    def size(self) -> int:
        """Bytes it holds."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size if isinstance(self.content, Path) else self.content.size

    def chunks(self) -> Iterator[bytes]:
        """Give its bytes piece by piece."""
        if isinstance(self.content, bytes):
            yield self.content
        elif isinstance(self.content, Path):
            with self.content.open("rb") as stream:
                yield from pieces(stream)
        else:
            yield from self.content.chunks()


@dataclass(frozen=True)
class Layer:
    """A named set of files, sorted; its tar form is a pure function of them and of one time.

    Attributes:
        name: What changes it: ``wheels``, ``server`` or ``model``.
        entries: Files by name.
        epoch: Modification time of everything in it, seconds since 1970.
    """

    name: str
    entries: tuple[Entry, ...]
    epoch: int = 0

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if names != sorted(set(names)):
            raise ValueError(f"the entries of layer '{self.name}' are not sorted by name, each once")

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)


def layer(name: str, entries: Iterable[Entry], epoch: int = 0) -> Layer:
    """Make a layer from files in any order.

    Raises:
        ValueError: When two have the same name.
    """
    return Layer(name, tuple(sorted(entries, key=lambda entry: entry.name)), epoch)


def directories(names: Iterable[str]) -> list[str]:
    """List every directory above some names, parents first.

    >>> directories(["opt/a/b.py", "opt/c.py"])
    ['opt', 'opt/a']
    """
    found = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return sorted(found - {"."})


def header(name: str, *, size: int = 0, mode: int = FILE_MODE, kind: bytes = b"0", epoch: int = 0) -> bytes:
    """Write one tar header, with a PAX record before it where ustar is too narrow."""
    records = b""
    prefix, short = _split(name)
    if short is None:
        records += _pax("path", name)
        prefix, short = b"", name.encode()[:100]
    if size >= _OCTAL_SIZE:
        records += _pax("size", str(size))
    extended = b""
    if records:
        extended = _ustar(
            b"", b"PaxHeaders/entry", size=len(records), mode=FILE_MODE, kind=b"x", epoch=epoch
        ) + _padded(records)
    return extended + _ustar(prefix, short, size=0 if size >= _OCTAL_SIZE else size, mode=mode, kind=kind, epoch=epoch)


def _split(name: str) -> tuple[bytes, bytes | None]:
    """Cut a name into ustar's prefix (155 bytes) and name (100 bytes); None where no cut fits."""
    raw = name.encode()
    if not name.isascii():
        return b"", None
    if len(raw) <= 100:
        return b"", raw
    for cut in (index for index, char in enumerate(raw) if char == ord("/")):
        if 0 < cut <= 155 and 0 < len(raw) - cut - 1 <= 100:
            return raw[:cut], raw[cut + 1 :]
    return b"", None


def _pax(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:  # the length counts its own digits
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _ustar(prefix: bytes, name: bytes, *, size: int, mode: int, kind: bytes, epoch: int) -> bytes:
    fields = [
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        b"%011o\0" % size,
        b"%011o\0" % epoch,
        b" " * 8,
        kind,
        bytes(100),
        b"ustar\x0000",
        bytes(32 + 32),
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def chunks(entries: Iterable[Entry], epoch: int = 0, *, parents: bool = True) -> Iterator[bytes]:
    """Give the tar form of files in the order given, piece by piece.

    Args:
        entries: The files.
        epoch: Modification time of everything, seconds since 1970.
        parents: Write every directory above them first.

    Raises:
        OSError: When a file cannot be read, or changes its size meanwhile.
    """
    items = list(entries)
    for name in directories(entry.name for entry in items) if parents else ():
        yield header(f"{name}/", mode=DIRECTORY_MODE, kind=b"5", epoch=epoch)
    for entry in items:
        yield header(entry.name, size=entry.size, mode=entry.mode, epoch=epoch)
        written = 0
        for piece in entry.chunks():
            written += len(piece)
            yield piece
        if written != entry.size:
            raise OSError(f"{entry.name} changed while it was read")
        yield bytes(-written % BLOCK)
    yield bytes(2 * BLOCK)
