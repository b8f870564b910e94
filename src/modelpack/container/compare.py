"""What differs between two archives of images: layer, file and bytes, or the line of a document."""

from __future__ import annotations

import itertools
import json
import tarfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from modelpack.container import layout
from modelpack.container.blob import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FACTS = ("type", "mode", "uid", "gid", "mtime", "size", "linkname", "uname", "gname")


@dataclass(frozen=True)
class _Found:
    """One image of an archive: its documents, what is attached to it by kind, and the archive that has its blobs."""

    archive: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    attached: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Give what each layer is called, by the history."""
        told = [item.get("created_by", "") for item in self.config.get("history", ()) if not item.get("empty_layer")]
        return [name.removeprefix("modelpack: ") for name in told]


def differences(one: Path, other: Path) -> list[str]:
    """List what differs between two archives, one line each; nothing when their digests agree.

    Raises:
        StageError: When one is damaged.
    """
    ours, theirs = _images(one), _images(other)
    if ours.keys() != theirs.keys():
        return [f"platforms: {', '.join(ours)} and {', '.join(theirs)}"]
    return [f"{platform}: {line}" for platform in ours for line in _compared(ours[platform], theirs[platform])]


def _images(archive: Path) -> dict[str, _Found]:
    """Find the images of an archive by platform, and what is attached to each."""
    index = json.loads(_blob(archive, "index.json").read())
    found: dict[str, _Found] = {}
    for item in index["manifests"]:
        document = _json(archive, item["digest"])
        for below in document.get("manifests", [item] if "subject" not in document else []):
            manifest = _json(archive, below["digest"])
            config = _json(archive, manifest["config"]["digest"])
            found[below["digest"]] = _Found(archive, manifest, config)
    for item in index["manifests"]:
        document = _json(archive, item["digest"])
        if "subject" in document and (image := found.get(document["subject"]["digest"])):
            image.attached[item["artifactType"]] = [_json(archive, each["digest"]) for each in document["layers"]]
    return {f"{each.config['os']}/{each.config['architecture']}": each for each in found.values()}


def _json(archive: Path, digest: str) -> Any:
    return json.loads(_stored(archive, digest).read())


def _blob(archive: Path, name: str) -> Blob:
    member = layout.index_archive(archive)[name]
    return Blob(archive, member.size, member.offset)


def _stored(archive: Path, digest: str) -> Blob:
    return _blob(archive, f"blobs/sha256/{digest.removeprefix('sha256:')}")


def _compared(one: _Found, other: _Found) -> Iterator[str]:
    """List what differs in two images; what is attached names the image's digest, so it is looked at only alone."""
    if one.manifest == other.manifest:
        kinds = sorted({*one.attached, *other.attached})
        for kind in kinds:
            yield from _values(one.attached.get(kind), other.attached.get(kind), kind)
        return
    layers = [each.manifest["layers"] for each in (one, other)]
    names = one.names()
    if len(layers[0]) != len(layers[1]):
        yield f"{len(layers[0])} layers and {len(layers[1])}"
        return
    for number, (ours, theirs) in enumerate(zip(*layers, strict=True)):
        if ours["digest"] != theirs["digest"]:
            first, second = (_stored(each.archive, item["digest"]) for each, item in ((one, ours), (other, theirs)))
            lines = list(_files(first, second)) or ["the same files, compressed to other bytes (another zlib)"]
            yield from (f"layer {names[number]}: {line}" for line in lines)
    yield from (f"configuration: {line}" for line in _values(_settings(one), _settings(other)))


def _settings(found: _Found) -> dict[str, Any]:
    """Give the configuration without what follows from the layers."""
    return {name: value for name, value in found.config.items() if name != "rootfs"}


def _values(one: object, other: object, path: str = "") -> Iterator[str]:
    """Compare two JSON values, and name the leaves that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from _values(one.get(name), other.get(name), f"{path}.{name}".strip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (ours, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _values(ours, theirs, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {json.dumps(one):.80} and {json.dumps(other):.80}"


def _files(one: Blob, other: Blob) -> Iterator[str]:
    """Compare two layers member by member, until their names part."""
    with (
        one.path.open("rb") as first,
        other.path.open("rb") as second,
        tarfile.open(fileobj=_tar(one, first), mode="r|") as ours,
        tarfile.open(fileobj=_tar(other, second), mode="r|") as theirs,
    ):
        for mine, its in itertools.zip_longest(ours, theirs):
            if mine is None or its is None or mine.name != its.name:
                yield f"{mine.name if mine else 'its end'} and {its.name if its else 'its end'} at the same place"
                return
            yield from _member(mine, its, ours, theirs)


def _tar(blob: Blob, stream: IO[bytes]) -> Any:
    return blob.unpacked(stream)


def _member(
    mine: tarfile.TarInfo, its: tarfile.TarInfo, ours: tarfile.TarFile, theirs: tarfile.TarFile
) -> Iterator[str]:
    for fact in _FACTS:
        if getattr(mine, fact) != getattr(its, fact):
            yield f"{mine.name}: {fact} {getattr(mine, fact)!r} and {getattr(its, fact)!r}"
    first, second = ours.extractfile(mine), theirs.extractfile(its)
    left, right = (stream.read() if stream else b"" for stream in (first, second))
    if left != right:
        at = next(
            (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
        )
        changed = sum(a != b for a, b in zip(left, right, strict=False)) + abs(len(left) - len(right))
        shown = f"{left[at : at + 8].hex(' ') or 'nothing'} and {right[at : at + 8].hex(' ') or 'nothing'}"
        yield f"{mine.name}: {changed} bytes differ, the first at {at}: {shown}"
