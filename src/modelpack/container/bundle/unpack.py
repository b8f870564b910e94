"""From an OCI artifact to files: every name and every byte checked, whoever wrote them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from modelpack.container.blob import Blob, Part
from modelpack.container.bundle.place import copy
from modelpack.container.tarball import CHUNK, MAX_BYTES, Hashing, TarMember, compression, members
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelpack.container.bundle.found import Found, Layer

KITFILE = "Kitfile"
_SWELLING = 100
"""Most bytes that one compressed byte may become; weights do not reach three."""
_SPARED = 1 << 30
"""Bytes that a layer may always become."""


@dataclass(frozen=True)
class _Piece:
    """One file that is to be written."""

    name: str
    blob: Blob


def unpack(found: Found, output: Path, scratch: Path) -> list[str]:
    """Write the files of a model artifact.

    Args:
        found: The artifact.
        output: An empty directory.
        scratch: Directory for layers that must be decompressed first.

    Returns:
        The files' names, sorted.

    Raises:
        StageError: When a digest is wrong, a name leads outside or comes twice, something is no plain file, or a layer
            becomes too large.
    """
    written: set[str] = set()
    for number, layer in enumerate(found.layers):
        for piece in _pieces(layer, scratch / f"layer-{number}.tar", found.where):
            if piece.name in written or any(str(above) in written for above in PurePosixPath(piece.name).parents):
                raise StageError(f"two files want the name {piece.name!r}", where=found.where)
            try:
                copy(piece.blob, output / piece.name)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise StageError(f"two files want the name {piece.name!r}", where=found.where) from error
            written.add(piece.name)
    if found.is_kit and KITFILE not in written:
        (output / KITFILE).write_bytes(_kitfile(found))
        written.add(KITFILE)
    return sorted(written)


def _pieces(layer: Layer, plain: Path, where: str) -> Iterator[_Piece]:
    if not layer.kind.is_tar:
        if layer.diff_id not in {"", layer.blob.digest}:
            raise StageError(f"the configuration says that {layer.name!r} has the digest {layer.diff_id}", where=where)
        yield _Piece(relative(layer.name, where), layer.blob)
        return
    tar = _decompressed(layer, plain, where)
    with tar.path.open("rb") as stream:
        stream.seek(tar.offset)
        window = io.BufferedReader(Part(stream, tar.size))
        for member in members(Hashing(window, where), where):
            if member.kind == "directory":
                continue
            yield _Piece(_checked(member, where), Blob(tar.path, member.size, tar.offset + member.offset))
    plain.unlink(missing_ok=True)


def _checked(member: TarMember, where: str) -> str:
    if member.kind != "file":
        raise StageError(f"{member.name!r} is no plain file but a {member.kind}", where=where)
    if member.absolute:
        raise StageError(f"a name is absolute: '/{member.name}'", where=where)
    return relative(member.name, where)


def relative(name: str, where: str) -> str:
    """Check a name that somebody else wrote: a relative POSIX path that stays below where it begins.

    Raises:
        StageError: When it is none.
    """
    path = PurePosixPath(name)
    bad = not name.isprintable() or "\\" in name or path.is_absolute() or ".." in path.parts or not path.parts
    if bad or len(name.encode("utf-8", "surrogateescape")) > 1024:
        raise StageError(f"a name leads outside or cannot be a file's: {name!r:.100}", where=where)
    return str(path)


def _decompressed(layer: Layer, plain: Path, where: str) -> Blob:
    """Give a layer's tar as a file that can be read anywhere, compared with the digests of it."""
    kind = compression(layer.blob.path, layer.blob.offset)
    if kind == "none":
        return _promised(layer, layer.blob.known(), where)
    if kind != "gzip":
        then = "ask for it packed with gzip, or not compressed"
        raise StageError(f"a layer is compressed with {kind}, which is not read here", where=where, then=then)
    for _ in layer.blob.chunks():
        pass  # damage is told as damage, before it is decompressed
    limit = min(MAX_BYTES, max(_SPARED, _SWELLING * layer.blob.size))
    with layer.blob.path.open("rb") as source, plain.open("wb") as target:
        reader = Hashing(layer.blob.unpacked(source), where, limit)
        while piece := reader.read(CHUNK):
            target.write(piece)
    return _promised(layer, Blob(plain, reader.count, 0, reader.digest), where)


def _promised(layer: Layer, tar: Blob, where: str) -> Blob:
    """Compare with what the configuration says; some tools write the digest of the compressed layer there."""
    if layer.diff_id not in {"", tar.digest, layer.blob.digest}:
        raise StageError(f"the layer {layer.blob.digest} unpacks to {tar.digest}, not {layer.diff_id}", where=where)
    return tar


def _kitfile(found: Found) -> bytes:
    """Write the Kitfile that a ModelKit carries as its configuration, without the digests that were added to it."""
    import yaml

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key == "parameters" else bare(item)
                for key, item in value.items()
                if key not in {"digest", "diffId"}
            }
        return value

    return yaml.safe_dump(bare(dict(found.config)), sort_keys=False, allow_unicode=True, width=10**6).encode()
