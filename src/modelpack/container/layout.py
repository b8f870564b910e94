"""Images that lie in files: OCI layouts (directory or archive) and docker archives."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container.blob import Blob
from modelpack.container.reference import DIGEST
from modelpack.container.tarball import Hashing, TarMember, compression, members
from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@dataclass(frozen=True)
class Raw:
    """An image as it was found: its configuration, its layers in order, and the digest it is known by.

    Attributes:
        config: The configuration's JSON object.
        layers: Blobs, lowest first.
        digest: ``sha256:`` of its manifest, or of what stands for one.
        text: The configuration's exact bytes, whose hash is the image's id; empty for a rootfs.
    """

    config: Mapping[str, Any]
    layers: tuple[Blob, ...]
    digest: str
    text: bytes = b""


def document(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote.

    Raises:
        StageError: When it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StageError(f"not JSON: {error}", where=where) from error
    if not isinstance(value, dict):
        raise StageError("not a JSON object", where=where)
    return value


def mapping(value: object) -> dict[str, Any]:
    """Take a JSON value that should be an object; anything else counts as empty."""
    return value if isinstance(value, dict) else {}


def choose(index: Mapping[str, Any], platform: str, where: str, tag: str = "") -> dict[str, Any]:
    """Pick the manifest of a platform from an index.

    Args:
        index: The index's JSON object.
        platform: ``os/architecture``.
        where: Names it in errors.
        tag: Keep only the manifests with this name, when given.

    Raises:
        UsageError: When none or several fit.
    """
    listed = index.get("manifests")
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    entries = [item for item in items if "artifactType" not in item]  # the others are documents about images
    if tag:
        names = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
        entries = [
            item
            for item in entries
            if any(str(mapping(item.get("annotations")).get(name, "")).split(":")[-1] == tag for name in names)
        ]
    exact = [item for item in entries if _platform(item) in (platform, f"{platform}/v8")]
    open_ended = [item for item in entries if "platform" not in item]
    fitting = exact or open_ended
    if len(fitting) != 1:
        offered = sorted({_platform(item) for item in entries if "platform" in item} - {"unknown/unknown"})
        found = f"{len(fitting)} images fit" if fitting else f"no image for {platform}"
        then = f"it offers: {', '.join(offered)}" if offered else "name one with :TAG" if fitting else ""
        raise UsageError(found, where=where, then=then)
    return fitting[0]


def _platform(item: Mapping[str, Any]) -> str:
    value = mapping(item.get("platform"))
    parts = [value.get("os"), value.get("architecture"), value.get("variant")]
    return "/".join(str(part) for part in parts if part)


def described(descriptor: Any, find: Callable[[str], Blob], where: str) -> Blob:
    """Find the blob that a descriptor means, bound to its digest and size.

    Raises:
        StageError: When the descriptor is malformed or the size differs.
    """
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise StageError(f"a descriptor without a sha256 digest: {descriptor!r:.80}", where=where)
    blob = find(digest)
    if blob.size != descriptor.get("size"):
        raise StageError(f"the blob {digest} has another size than its descriptor says", where=where)
    return Blob(blob.path, blob.size, blob.offset, digest)


def oci(root: Path, platform: str, tag: str, *, archive: bool) -> Raw:
    """Read an image from an OCI layout.

    Args:
        root: The directory, or the archive.
        platform: ``os/architecture``.
        tag: Which image, when there are several.
        archive: Whether `root` is a tar.

    Raises:
        StageError: When the layout is damaged.
        UsageError: When it does not hold exactly one fitting image.
    """
    where = str(root)
    file = opener(root, archive=archive)

    def find(digest: str) -> Blob:
        return file(f"blobs/sha256/{digest.removeprefix('sha256:')}")

    manifest: dict[str, Any] = document(file("index.json").read(), f"{where}: index.json")
    digest = ""
    for _ in range(4):  # indexes may nest; a sane one does so once
        if "manifests" not in manifest:
            break
        entry = choose(manifest, platform, where, "" if digest else tag)
        digest = str(entry.get("digest"))
        manifest = document(described(entry, find, where).read(), f"{where}: {digest}")
    return manifest_image(manifest, digest, find, where)


def opener(root: Path, *, archive: bool) -> Callable[[str], Blob]:
    """Give what opens the files of an OCI layout, which is a directory or an archive, by name.

    Raises:
        StageError: When the archive is damaged; what it gives raises it for a file that is not there.
    """
    named = index_archive(root) if archive else None

    def file(name: str) -> Blob:
        if named is not None:
            if name not in named:
                raise StageError(f"has no '{name}'", where=str(root))
            return Blob(root, named[name].size, named[name].offset)
        path = root / name
        if not path.is_file():
            raise StageError(f"has no '{name}'", where=str(root))
        return Blob(path, path.stat().st_size)

    return file


def manifest_image(manifest: Mapping[str, Any], digest: str, find: Callable[[str], Blob], where: str) -> Raw:
    """Follow a manifest to its configuration and layers.

    Raises:
        StageError: When it is no image manifest or a blob is missing.
    """
    layers = manifest.get("layers")
    if not isinstance(layers, list) or "config" not in manifest:
        raise StageError("not an image manifest", where=where)
    text = described(manifest["config"], find, where).read()
    config = document(text, f"{where}: configuration")
    return Raw(config, tuple(described(item, find, where) for item in layers), digest, text)


def index_archive(path: Path) -> dict[str, TarMember]:
    """List the plain files of an uncompressed tar by name, links followed within it.

    Raises:
        StageError: When it is compressed, damaged, or no tar.
    """
    where = str(path)
    if (kind := compression(path)) != "none":
        raise StageError(f"the archive is compressed with {kind}", where=where, then="decompress it first")
    with path.open("rb") as stream:
        found = {member.name: member for member in members(Hashing(stream, where), where)}
    files = {name: item for name, item in found.items() if item.kind == "file"}
    for name, item in found.items():
        if item.kind in ("link", "symlink"):
            folder = posixpath.dirname(name) if item.kind == "symlink" else ""
            target = files.get(posixpath.normpath(posixpath.join(folder, item.target)))
            if target:  # `docker save` writes a layer that appears twice as a link
                files[name] = target
    return files


def docker_archive(path: Path, platform: str, tag: str) -> Raw:
    """Read an image from what `docker save` writes.

    Raises:
        StageError: When the archive is damaged or is for another platform.
        UsageError: When it does not hold exactly one fitting image.
    """
    where = str(path)
    named = index_archive(path)

    def file(name: object) -> Blob:
        if not isinstance(name, str) or name not in named:
            raise StageError(f"has no '{name}'", where=where)
        return Blob(path, named[name].size, named[name].offset)

    try:
        listed: Any = json.loads(file("manifest.json").read())
    except (ValueError, RecursionError) as error:
        raise StageError(f"manifest.json is malformed: {error}", where=where) from error
    images = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    fitting = [item for item in images if not tag or any(_tagged(name, tag) for name in _tags(item))]
    if len(fitting) != 1:
        names = sorted({name for item in images for name in _tags(item)})
        raise UsageError(
            f"{len(fitting)} images fit", where=where, then=f"it holds: {', '.join(names)}" if names else ""
        )
    source = file(fitting[0].get("Config"))
    text = source.read()
    config = document(text, f"{where}: configuration")
    listed = fitting[0].get("Layers")
    layers: list[object] = listed if isinstance(listed, list) else []
    raw = Raw(config, tuple(file(name) for name in layers), source.known().digest, text)
    check_platform(config, platform, where)
    return raw


def _tags(item: Mapping[str, Any]) -> list[str]:
    tags = item.get("RepoTags")
    return [name for name in tags if isinstance(name, str)] if isinstance(tags, list) else []


def _tagged(name: str, tag: str) -> bool:
    return tag in (name, name.rpartition(":")[2])


def check_platform(config: Mapping[str, Any], platform: str, where: str) -> None:
    """Refuse an image for another platform.

    Raises:
        StageError: Naming both.
    """
    found = f"{config.get('os', 'linux')}/{config.get('architecture', '')}"
    if found != platform:
        raise StageError(f"the image is for {found}, not {platform}", where=where)


def rootfs(path: Path, platform: str) -> Raw:
    """Make an image of one file system in a tar; its configuration says nothing but the platform."""
    blob = Blob(path, path.stat().st_size).known()
    system, _, architecture = platform.partition("/")
    return Raw({"os": system, "architecture": architecture, "config": {}}, (blob,), blob.digest)
