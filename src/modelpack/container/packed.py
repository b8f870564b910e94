"""Compressed layers: the same tar gives the same bytes, and a tar that was compressed once is not compressed again."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

GZIP_LEVEL = 6


@dataclass(frozen=True)
class Packed:
    """A layer written to a file.

    Attributes:
        path: The gzip file.
        digest: ``sha256:`` of its bytes: what a registry calls it.
        diff_id: ``sha256:`` of the tar inside: what an image calls it.
        size: Bytes of the gzip file.
        unpacked: Bytes of the tar inside.
    """

    path: Path
    digest: str
    diff_id: str
    size: int
    unpacked: int


def pack(tar: Callable[[], Iterable[bytes]], path: Path, cache: Path | None = None) -> Packed:
    """Compress a tar into a file; the same tar gives the same bytes with the same zlib.

    The header carries neither name nor time. Another zlib (zlib-ng) may give another `digest`, never another `diff_id`.

    Args:
        tar: Gives the tar from its start, each time it is called.
        path: The file to write.
        cache: Directory where compressed layers are kept; one that is there is used instead of `path`.
    """
    found = _find_packed(tar(), cache) if cache else None
    if found:
        return found
    inner, unpacked = hashlib.sha256(), 0
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    with path.open("wb") as stream:
        for piece in tar():
            inner.update(piece)
            unpacked += len(piece)
            stream.write(deflate.compress(piece))
        stream.write(deflate.flush())
    packed = Packed(path, _file_digest(path), f"sha256:{inner.hexdigest()}", path.stat().st_size, unpacked)
    return _keep_packed(packed, cache) if cache else packed


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _find_packed(tar: Iterable[bytes], cache: Path) -> Packed | None:
    """Look for the compressed form of a tar; hashing takes a tenth of the time that compressing does."""
    inner, unpacked = hashlib.sha256(), 0
    for piece in tar:
        inner.update(piece)
        unpacked += len(piece)
    for path in sorted((cache / "layers").glob(f"{inner.hexdigest()}-*.tar.gz")):
        digest = _file_digest(path)
        if path.name == f"{inner.hexdigest()}-{digest.removeprefix('sha256:')}.tar.gz":
            return Packed(path, digest, f"sha256:{inner.hexdigest()}", path.stat().st_size, unpacked)
    return None


def _keep_packed(packed: Packed, cache: Path) -> Packed:
    name = f"{packed.diff_id.removeprefix('sha256:')}-{packed.digest.removeprefix('sha256:')}.tar.gz"
    kept = cache / "layers" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_name(f".{os.getpid()}.{name}")
    shutil.copyfile(packed.path, draft)
    draft.replace(kept)
    return packed
