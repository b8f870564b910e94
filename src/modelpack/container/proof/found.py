"""An image where it lies, with what is attached to it: in an archive, an OCI layout or a registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.container import layout
from modelpack.container.archive import Archive, Attached
from modelpack.container.blob import Blob
from modelpack.container.bundle import media
from modelpack.container.oci import Image, Stored
from modelpack.container.reference import SCHEMES, BaseRef, ImageName
from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_EXAMINED = ("oci-archive", "oci", "docker")
_SAVED = "examine the file of `modelpack build --output`, or the image in its registry"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True)
class Found:
    """An image that was found.

    Attributes:
        archive: It, as an archive of modelpack would hold it.
        digest: ``sha256:`` of its manifest, or of the index of several.
        where: What to call it.
        path: The file, for one that is an archive.
    """

    archive: Archive
    digest: str
    where: str
    path: Path | None = None


def meant(text: str) -> BaseRef | None:
    """Tell which image a word means; None where it means none.

    One is a file ``*.tar``, a directory with an OCI layout, ``docker://REF``, ``oci:DIR``, ``oci-archive:FILE``, and
    a reference that begins with a registry's host.

    Raises:
        UsageError: When it names an image in a form that is not examined, or a file that is not there.
    """
    scheme, colon, _ = text.partition(":")
    if colon and scheme in SCHEMES and not Path(text).exists():
        ref = BaseRef.parse(text)
        if ref.scheme not in _EXAMINED:
            known = ", ".join(f"{name}:" for name in _EXAMINED)
            raise UsageError(f"images in {scheme}: are not examined", where=text, then=f"name one with {known}")
        return ref
    path = Path(text)
    if path.is_dir() and (path / "oci-layout").is_file():
        return BaseRef("oci", text, path)
    if path.is_file():
        return BaseRef("oci-archive", text, path) if text.endswith(".tar") else None
    if text.endswith(".tar"):
        raise UsageError("no such file", where=text)
    host, slash, _ = text.partition("/")
    named = slash and (host == "localhost" or ":" in host or "." in host.strip(".")) and not text.endswith(".onnx")
    return BaseRef.parse(f"docker://{text}") if named else None


def find(ref: BaseRef, cache: Path) -> Found:
    """Find an image; manifests, configurations and documents are compared with their digests, layers are not yet.

    Args:
        ref: ``oci-archive``, ``oci`` or ``docker``.
        cache: Directory for what a registry sends.

    Raises:
        MissingError: When a registry does not answer.
        StageError: When it is damaged.
        UsageError: When there is none, or the reference fits several.
    """
    if ref.scheme == "docker":
        from modelpack.container.proof import remote

        index, blobs = remote.fetch(ref.name, cache)
        return _assembled(index, blobs, str(ref), str(ImageName.parse(ref.name)))
    assert ref.path is not None, "the other schemes name files"
    try:
        if ref.scheme == "oci":
            root = ref.path
            index = layout.document((root / "index.json").read_bytes(), f"{root}: index.json")
            return _assembled(_chosen(index, ref), lambda digest: _file(root, digest), str(root))
        return _in_archive(ref)
    except OSError as error:
        raise StageError(f"cannot be read: {error.strerror}", where=str(error.filename or ref.path)) from error


def _in_archive(ref: BaseRef) -> Found:
    path = ref.path
    assert path is not None, "an archive is a file"
    named = layout.index_archive(path)
    if "manifest.json" in named and "index.json" not in named:
        raise StageError(
            "an archive as `docker save` writes it, which leaves behind what proves the image", then=_SAVED
        )

    def file(name: str) -> Blob:
        if name not in named:
            raise StageError(f"has no '{name}'", where=str(path))
        return Blob(path, named[name].size, named[name].offset)

    index = _chosen(layout.document(file("index.json").read(), f"{path}: index.json"), ref)
    listed = _list(file("manifest.json").read(), f"{path}: manifest.json")
    tags = listed[0].get("RepoTags") if listed else None
    tag = str(tags[0]) if isinstance(tags, list) and tags else ""
    found = _assembled(index, lambda digest: file(_blob(digest)), str(path), tag)
    loaded = [image.platform for image in found.archive.images if listed and listed[0].get("Config") == _blob(image.id)]
    archive = Archive(found.archive.images, loaded[0] if loaded else "", found.archive.attached)
    return Found(archive, found.digest, found.where, path)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _file(root: Path, digest: str) -> Blob:
    path = root / _blob(digest)
    if not path.is_file():
        raise StageError(f"has no '{_blob(digest)}'", where=str(root))
    return Blob(path, path.stat().st_size)


def _list(data: bytes, where: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StageError(f"not JSON: {error}", where=where) from error
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _chosen(index: Mapping[str, Any], ref: BaseRef) -> dict[str, Any]:
    """Keep of an index the image that is meant, and all documents."""
    listed = index.get("manifests")
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    documents = [item for item in items if "artifactType" in item]
    images = [item for item in items if "artifactType" not in item]
    if not images:
        _no_model((item["artifactType"] for item in documents), str(ref))
    called = [item for item in images if _tag(item)] or images
    named = [item for item in called if not ref.tag or ref.tag in (_tag(item), _tag(item).rpartition(":")[2])]
    if len(named) != 1:
        names = ", ".join(sorted(filter(None, map(_tag, images))))
        if len(images) < 2:
            raise StageError("holds no image" if not images else f"holds no image '{ref.tag}'", where=str(ref.path))
        raise UsageError(f"{len(named)} images fit", where=str(ref), then=f"name one with :TAG; it holds {names}")
    return {"manifests": [*named, *documents]}


def _no_model(kinds: Iterable[object], where: str) -> None:
    """Refuse a model that was pushed without an image.

    Raises:
        UsageError: When one of the media types says so.
    """
    if any(kind in (media.ARTIFACT, *media.CONFIGS, media.KIT) for kind in kinds):
        raise UsageError(
            "this is a model, not an image", where=where, then="`modelpack pull` compares every byte of it"
        )


def _tag(item: Mapping[str, Any]) -> str:
    names = layout.mapping(item.get("annotations"))
    return next((str(names[key]) for key in _NAMES if key in names), "")


def _assembled(index: Mapping[str, Any], blobs: Callable[[str], Blob], where: str, tag: str = "") -> Found:
    """Follow an index whose first entry is the image and whose others are documents."""
    first, *others = index["manifests"]
    data = layout.described(first, blobs, where).read()
    body = layout.document(data, f"{where}: {first.get('digest')}")
    below = body.get("manifests", [first])
    if not isinstance(below, list) or not below:
        raise StageError("an index without images", where=where)
    images = [_image(item, blobs, tag or _tag(first), where) for item in below]
    documents = [_document(item, blobs, where) for item in others]
    archive = Archive(tuple(images), images[0].platform, tuple(documents))
    return Found(archive, str(first["digest"]), where)


def _image(descriptor: Any, blobs: Callable[[str], Blob], tag: str, where: str) -> Image:
    data = layout.described(descriptor, blobs, where).read()
    digest = str(descriptor["digest"])
    body = layout.document(data, f"{where}: {digest}")
    _no_model([layout.mapping(body.get("config")).get("mediaType")], where)
    raw = layout.manifest_image(body, digest, blobs, where)
    promised = layout.mapping(raw.config.get("rootfs")).get("diff_ids")
    if not isinstance(promised, list) or len(promised) != len(raw.layers):
        raise StageError("its configuration and its manifest count the layers differently", where=where)
    layers = [
        Stored("", blob.digest, str(diff_id), blob.size, 0, blob)
        for blob, diff_id in zip(raw.layers, promised, strict=True)
    ]
    platform = f"{raw.config.get('os', '')}/{raw.config.get('architecture', '')}"
    return Image(raw.text, data, tuple(layers), tag, platform)


def _document(descriptor: Any, blobs: Callable[[str], Blob], where: str) -> Attached:
    data = layout.described(descriptor, blobs, where).read()
    body = layout.document(data, f"{where}: {descriptor['digest']}")
    layers = body.get("layers")
    parts: Sequence[Any] = [body.get("config"), *(layers if isinstance(layers, list) else ())]
    return Attached(
        str(body.get("artifactType", "")), data, tuple(layout.described(item, blobs, where).read() for item in parts)
    )
