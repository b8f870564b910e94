"""Bytes known by their digest, wherever they lie: a file, a part of an archive, a cache."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from modelpack.container.tarball import CHUNK, Hashing, Reader, compression
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _typeshed import WriteableBuffer

MAX_JSON = 8 << 20
"""Largest manifest, index or configuration that is read."""


class Part(io.RawIOBase):
    """A window into a file, read like a file of its own."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        """Begin where the stream stands and end `size` bytes later."""
        self._stream, self._size, self._left = stream, size, size

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer as far as the window reaches."""
        view = memoryview(buffer).cast("B")
        data = self._stream.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def tell(self) -> int:
        """Say how many bytes were read; who sends a window asks this and its length."""
        return self._size - self._left

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True)
class Blob:
    """A run of bytes in a file.

    Attributes:
        path: The file.
        size: Its length in bytes.
        offset: Where it begins.
        digest: ``sha256:`` that it must have; empty where nobody promised one.
    """

    path: Path
    size: int
    offset: int = 0
    digest: str = ""

    def chunks(self) -> Iterator[bytes]:
        """Give its bytes piece by piece.

        Raises:
            StageError: When they are fewer than `size` or have another digest than promised.
        """
        hasher, left = hashlib.sha256(), self.size
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            while left and (piece := stream.read(min(CHUNK, left))):
                hasher.update(piece)
                left -= len(piece)
                yield piece
        if left or self.digest not in ("", f"sha256:{hasher.hexdigest()}"):
            raise StageError(f"the blob {self.digest or self.path.name} is damaged", where=str(self.path))

    def read(self) -> bytes:
        """Give a small blob's bytes.

        Raises:
            StageError: When it is damaged or larger than any manifest may be.
        """
        if self.size > MAX_JSON:
            raise StageError(f"a document of {self.size} bytes where a manifest is expected", where=str(self.path))
        return b"".join(self.chunks())

    def known(self) -> Blob:
        """Give the same blob with its digest computed."""
        hasher = hashlib.sha256()
        for piece in self.chunks():
            hasher.update(piece)
        return Blob(self.path, self.size, self.offset, f"sha256:{hasher.hexdigest()}")

    @property
    def compression(self) -> str:
        """How it is compressed, by its first bytes."""
        return compression(self.path, self.offset)

    def unpacked(self, stream: IO[bytes]) -> Reader:
        """Give the tar inside, reading from the opened file.

        Raises:
            StageError: When the compression is not one that this reads.
        """
        stream.seek(self.offset)
        part = io.BufferedReader(Part(stream, self.size), CHUNK)
        kind = self.compression
        if kind == "gzip":
            return gzip.GzipFile(fileobj=part)
        if kind == "xz":
            return lzma.LZMAFile(part)
        if kind != "none":
            raise StageError(
                f"the layer is compressed with {kind}",
                where=str(self.path),
                then="use an image whose layers are gzip, or convert it with `skopeo copy --dest-compress-format gzip`",
            )
        return part

    def tar_chunks(self) -> Iterator[bytes]:
        """Give the tar inside piece by piece.

        Raises:
            StageError: When it is damaged.
        """
        with self.path.open("rb") as stream:
            reader = Hashing(self.unpacked(stream), str(self.path))
            while piece := reader.read(CHUNK):
                yield piece
