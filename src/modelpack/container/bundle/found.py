"""A model artifact where it lies: in a registry, an OCI layout or an archive of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container import layout, registry
from modelpack.container.blob import MAX_JSON, Blob
from modelpack.container.bundle import media
from modelpack.container.download import cached, download, keep
from modelpack.container.http import Registry
from modelpack.container.oci import sha256
from modelpack.container.reference import BaseRef, ImageName
from modelpack.errors import StageError, UsageError
from modelpack.errors import listed as together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_NAME = "org.opencontainers.image.ref.name"
_IMAGES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


@dataclass(frozen=True)
class Layer:
    """One layer: its file's name (empty for a tar), what it is, its bytes, and what they unpack to.

    Attributes:
        name: POSIX path as it was written, not checked yet.
        kind: Role and form.
        blob: Its bytes; they are compared with the digest when they are read.
        diff_id: ``sha256:`` of the uncompressed content; empty where nobody promised one.
    """

    name: str
    kind: media.Kind
    blob: Blob
    diff_id: str = ""


@dataclass(frozen=True)
class Found:
    """A model artifact that was found, every layer of it at hand.

    Attributes:
        where: What to call it.
        digest: ``sha256:`` of its manifest.
        config: Its configuration: that of the specification, or a Kitfile.
        is_kit: Whether KitOps wrote it in its own form.
        layers: In order.
    """

    where: str
    digest: str
    config: Mapping[str, Any]
    is_kit: bool
    layers: tuple[Layer, ...]


def find(text: str, cache: Path, tell: Callable[[int, int], None] = lambda _done, _total: None) -> Found:
    """Fetch or open a model artifact.

    Args:
        text: Registry reference, ``oci:DIR[:TAG]`` or ``oci-archive:FILE[:TAG]``.
        cache: Directory of downloads; what is there is not fetched again.
        tell: Receives how many bytes of how many are there.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When it is damaged.
        UsageError: When there is none, or it is something else than a model.
    """
    ref = BaseRef.parse(text)
    if ref.scheme == "docker":
        return _fetched(ImageName.parse(ref.name), cache, tell)
    if ref.path is None or ref.scheme not in {"oci", "oci-archive"}:
        raise UsageError("a model artifact is expected", where=text, then="name REF, oci:DIR or oci-archive:FILE")
    file = layout.opener(ref.path, archive=ref.scheme == "oci-archive")

    def blob(digest: str) -> Blob:
        return file(f"blobs/sha256/{digest.removeprefix('sha256:')}")

    index = layout.document(file("index.json").read(), f"{ref.path}: index.json")
    entry = _chosen(index, ref.tag, str(ref))
    data = layout.described(entry, blob, str(ref)).read()
    return _read(data, str(ref), blob)


def _chosen(index: Mapping[str, Any], tag: str, where: str) -> dict[str, Any]:
    """Pick the only model of a layout, or the one with a tag.

    Raises:
        UsageError: When none or several fit.
    """
    listed = index.get("manifests")
    entries = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    names = {id(item): str(layout.mapping(item.get("annotations")).get(_NAME, "")) for item in entries}
    fitting = [item for item in entries if not tag or names[id(item)] == tag]
    models = [item for item in fitting if item.get("artifactType") == media.ARTIFACT]
    chosen = models or [item for item in fitting if "artifactType" not in item] or fitting
    if len(chosen) != 1:
        offered = together(filter(None, sorted(names.values())))
        what = f"{len(chosen)} models fit" if chosen else "no model fits"
        raise UsageError(what, where=where, then=f"it holds: {offered}" if offered else "")
    return chosen[0]


def _fetched(name: ImageName, cache: Path, tell: Callable[[int, int], None]) -> Found:
    done = total = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        tell(done, total)

    with Registry(name, moved=moved) as connection:
        data = registry.manifest(connection, name.digest or name.tag)
        body = layout.document(data, str(name))
        check(body, str(name))
        wanted = [body.get("config"), *_layers(body, str(name))]
        total = sum(size for item in wanted if isinstance(size := layout.mapping(item).get("size"), int))
        for item in wanted:
            download(connection, item, cache)
    keep(cache, sha256(data), data)
    return _read(data, str(name), lambda digest: cached(cache, digest))


def _layers(manifest: Mapping[str, Any], where: str) -> list[Any]:
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise StageError("the manifest has no layers", where=where)
    return layers


def check(manifest: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest that is not of a model, before anything large is fetched.

    Raises:
        StageError: When its configuration is larger than any can be.
        UsageError: When it is of an image, an index, or something unknown.
    """
    described = layout.mapping(manifest.get("config"))
    kind, size = described.get("mediaType"), described.get("size")
    if kind in {*media.CONFIGS, media.KIT}:
        if isinstance(size, int) and size > MAX_JSON:
            raise StageError(f"a configuration of {size} bytes", where=where)
        return
    if "manifests" in manifest or kind in _IMAGES:
        raise UsageError(
            "this is a container image, not a model", where=where, then="pull it with your container engine"
        )
    told = manifest.get("artifactType") or kind
    raise UsageError(f"this is no model that modelpack can read: {told!r:.100}", where=where)


def _read(data: bytes, where: str, blob: Callable[[str], Blob]) -> Found:
    manifest = layout.document(data, where)
    check(manifest, where)
    about = manifest["config"]
    config = layout.document(layout.described(about, blob, where).read(), f"{where}: configuration")
    described = _layers(manifest, where)
    promised = _diff_ids(config, len(described))
    layers = tuple(_layer(item, diff_id, blob, where) for item, diff_id in zip(described, promised, strict=True))
    return Found(where, sha256(data), config, about["mediaType"] == media.KIT, layers)


def _diff_ids(config: Mapping[str, Any], count: int) -> list[str]:
    """Read what layers unpack to; earlier writers of the specification spelled the key ``diff_ids``."""
    model = layout.mapping(config.get("modelfs"))
    listed = model.get("diffIds") or model.get("diff_ids")
    if not isinstance(listed, list) or len(listed) != count:
        return [""] * count
    return [item if isinstance(item, str) else "" for item in listed]


def _layer(descriptor: Any, diff_id: str, blob: Callable[[str], Blob], where: str) -> Layer:
    kind = media.kind(layout.mapping(descriptor).get("mediaType"))
    if kind is None:
        told = layout.mapping(descriptor).get("mediaType")
        raise StageError(f"a layer of an unknown kind: {told!r:.100}", where=where)
    notes = layout.mapping(descriptor.get("annotations"))
    name = next((str(notes[key]) for key in media.PATHS if notes.get(key)), "")
    if not name and not kind.is_tar:
        raise StageError(f"the layer {descriptor.get('digest')} names no file", where=where)
    return Layer("" if kind.is_tar else name, kind, layout.described(descriptor, blob, where), diff_id)
