"""Reading tar archives that somebody else wrote, without extracting them and without trusting them.

Only headers are interpreted (POSIX.1-2001 pax, ustar, GNU long names); a member that leads outside the archive's root,
a header that cannot be right and an archive beyond the limits are refused.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import posixpath
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 512
CHUNK = 1 << 20
MAX_MEMBERS = 2_000_000
MAX_BYTES = 64 << 30
MAX_HEADER = 1 << 20
"""Largest pax or long-name record; real ones stay below a few kilobytes."""
_MAGICS = {b"\x1f\x8b": "gzip", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"BZ": "bzip2"}
_UNREADABLE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@dataclass(frozen=True)
class TarMember:
    """One member: its name without leading ``./``, its type and where its bytes begin in the unpacked tar.

    Attributes:
        kind: ``file``, ``link`` (hard), ``symlink``, ``directory`` or ``other``.
        target: Where a link points, as written.
        head: The first bytes of a regular file, where the reader was asked for them.
        absolute: Whether its name was written with a leading ``/``.
    """

    name: str
    kind: str
    size: int
    mode: int
    target: str
    offset: int
    head: bytes = b""
    absolute: bool = False


_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "link", b"2": "symlink", b"5": "directory"}


def compression(path: Path, offset: int = 0) -> str:
    """Tell how a file is compressed by its first bytes: ``gzip``, ``xz``, ``zstd``, ``bzip2`` or ``none``."""
    with path.open("rb") as stream:
        stream.seek(offset)
        return _MAGICS.get(stream.read(2), "none")


class Reader(Protocol):
    """Anything that bytes can be read from in order."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes."""


class Hashing:
    """A stream that hashes and counts what passes, and refuses to pass more than a limit."""

    def __init__(self, stream: Reader, where: str, limit: int = MAX_BYTES) -> None:
        """Wrap a stream; `where` names it in errors."""
        self._stream, self._where, self._limit = stream, where, limit
        self._hash = hashlib.sha256()
        self.count = 0

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes.

        Raises:
            StageError: When the limit is passed or the compressed data are damaged.
        """
        try:
            data = self._stream.read(size)
        except _UNREADABLE as error:
            raise StageError(f"the compressed data are damaged: {error}", where=self._where) from error
        self._hash.update(data)
        self.count += len(data)
        if self.count > self._limit:
            raise StageError(f"unpacks to more than {self._limit} bytes", where=self._where)
        return data

    def exactly(self, size: int) -> bytes:
        """Read `size` bytes.

        Raises:
            StageError: When the stream ends before.
        """
        parts = []
        while size and (data := self.read(min(size, CHUNK))):
            parts.append(data)
            size -= len(data)
        if size:
            raise StageError("the tar archive ends in the middle of a member", where=self._where)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Read `size` bytes and forget them."""
        while size:
            size -= len(self.exactly(min(size, CHUNK)))

    def drain(self) -> None:
        """Read to the end."""
        while self.read(CHUNK):
            pass

    @property
    def digest(self) -> str:
        """``sha256:`` of everything read so far."""
        return f"sha256:{self._hash.hexdigest()}"


def clean(name: str, where: str) -> str:
    """Reduce a member's name to a relative POSIX path, empty for the root itself.

    Raises:
        StageError: When it leads outside.
    """
    if "\0" in name:
        raise StageError(f"a member's name holds a zero byte: {name!r}", where=where)
    if ".." in name.split("/"):
        raise StageError(f"a member leads outside the archive: {name!r}", where=where)
    path = posixpath.normpath(name.lstrip("/"))
    return "" if path == "." else path


def members(stream: Hashing, where: str, *, heads: str = "") -> Iterator[TarMember]:
    """Read a tar's headers in order, passing over its content.

    Args:
        stream: The unpacked tar.
        where: Names it in errors.
        heads: Keep the first 64 bytes of files whose base name begins with this; of none when empty.

    Raises:
        StageError: When it is no tar, is damaged, leads outside or is too large.
    """
    extra: dict[str, str] = {}
    for count in range(MAX_MEMBERS + 1):
        block = stream.read(BLOCK)
        if not block or block == bytes(BLOCK):
            stream.drain()
            return
        if count == MAX_MEMBERS:
            break
        if len(block) < BLOCK:
            block += stream.exactly(BLOCK - len(block))
        kind, size, name = _header(block, where)
        if kind in (b"x", b"g", b"L", b"K"):
            extra.update(_record(stream, kind, size, where))
            continue
        if kind == b"S":
            raise StageError(f"a sparse member is not supported: {name!r}", where=where)
        size = _decimal(extra["size"], where) if "size" in extra else size
        start = stream.count
        written = extra.get("path", name)
        path = clean(written, where)
        wanted = heads and _KINDS.get(kind) == "file" and path.rpartition("/")[2].startswith(heads)
        kept = min(size, 64) if wanted else 0
        head = stream.exactly(kept)
        stream.skip(size - kept + -size % BLOCK)
        target = extra.get("linkpath", _text(block[157:257]))
        extra = {}
        mode, absolute = _number(block[100:108], where), written.startswith("/")
        yield TarMember(path, _KINDS.get(kind, "other"), size, mode, target, start, head, absolute)
    raise StageError(f"holds more than {MAX_MEMBERS} members", where=where)


def _header(block: bytes, where: str) -> tuple[bytes, int, str]:
    blank = block[:148] + b" " * 8 + block[156:]
    if _number(block[148:156], where) not in (sum(blank), sum(byte - 256 * (byte > 127) for byte in blank)):
        raise StageError("not a tar archive, or a damaged one: a header's checksum is wrong", where=where)
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return block[156:157], _number(block[124:136], where), f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(raw: bytes, where: str) -> int:
    """Read an octal field, or GNU's base-256 form; never negative."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    try:
        value = int(raw.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise StageError("not a tar archive, or a damaged one: a header's number is wrong", where=where)
    return value


def _decimal(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        raise StageError(f"a pax record gives the size {text!r}", where=where)
    return int(text)


def _record(stream: Hashing, kind: bytes, size: int, where: str) -> dict[str, str]:
    """Read a record that describes the next member; global pax records (``g``) are passed over."""
    if size > MAX_HEADER:
        raise StageError(f"a header record of {size} bytes", where=where)
    data = stream.exactly(size)
    stream.skip(-size % BLOCK)
    if kind in (b"L", b"K"):
        return {"path" if kind == b"L" else "linkpath": _text(data)}
    found: dict[str, str] = {}
    while kind == b"x" and data:
        head, _, rest = data.partition(b" ")
        length = int(head) if head.isdigit() and len(head) < 8 else 0
        key, equals, value = rest[: max(0, length - len(head) - 1)].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data):
            raise StageError("a pax record is malformed", where=where)
        found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return found
