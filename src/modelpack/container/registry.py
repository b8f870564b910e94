"""Images in registries: pulled as bases, pushed as results, every byte compared with its digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container import layout
from modelpack.container.blob import MAX_JSON, Blob
from modelpack.container.download import cached, download, keep, place
from modelpack.container.http import Registry, limited
from modelpack.container.patience import persist
from modelpack.container.reference import DIGEST, ImageName
from modelpack.container.upload import put, scopes, upload
from modelpack.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_ADVICE = (
    "check the network and HTTPS_PROXY; or take the base from a file (oci-archive:, docker-archive:, rootfs: from "
    "`make base`); or use --offline if this base was used before"
)
_ACCEPT = {"Accept": ", ".join((*layout.MANIFESTS, *layout.INDEXES))}


def pull(text: str, platform: str, cache: Path, *, offline: bool = False) -> layout.Raw:
    """Fetch an image into the cache; layers stay compressed.

    Args:
        text: Registry reference.
        platform: ``os/architecture``.
        cache: Directory of downloads; what is there is not fetched again.
        offline: Use only the cache.

    Raises:
        MissingError: When the registry does not answer or refuses, or the cache lacks the image.
        StageError: When bytes differ from their digest.
        UsageError: When there is no such image, or none for the platform.
    """
    name = ImageName.parse(text)
    known = _remembered(name, platform, cache)
    if not offline and not (name.digest and known):
        with Registry(name, advice=_ADVICE) as registry:
            known = _fetch(registry, platform, cache)
        note = _note(name, platform, cache)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(known, encoding="ascii")
    if not known:
        raise MissingError(f"{name} is not in the cache", where=str(cache), then="build once without --offline")
    return layout.manifest_image(
        layout.document(cached(cache, known).read(), str(name)),
        known,
        lambda digest: cached(cache, digest),
        str(name),
    )


def _fetch(registry: Registry, platform: str, cache: Path) -> str:
    """Download an image's manifest, configuration and layers; gives the manifest's digest."""
    name = registry.name
    data = manifest(registry, name.digest or name.tag)
    found = layout.document(data, str(name))
    if "manifests" in found:
        entry = layout.choose(found, platform, str(name))
        data = manifest(registry, str(entry.get("digest")))
        found = layout.document(data, str(name))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    for item in [found.get("config"), *(found.get("layers") or ())]:
        download(registry, item, cache)
    keep(cache, digest, data)
    return digest


def manifest(registry: Registry, reference: str) -> bytes:
    """Fetch a manifest or index by tag or digest, and compare it with the digest that it should have.

    Raises:
        StageError: When they differ.
    """
    data, promised = persist(lambda: _manifest(registry, reference))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    promised = reference if DIGEST.fullmatch(reference) else promised or digest
    if promised != digest:
        raise StageError(f"the registry sent a manifest with digest {digest}, not {promised}", where=str(registry.name))
    return data


def _manifest(registry: Registry, reference: str) -> tuple[bytes, str]:
    response = registry.send("GET", f"manifests/{reference}", headers=_ACCEPT, again=False)
    return limited(response, MAX_JSON, str(registry.name)), response.headers.get("Docker-Content-Digest", "")


def _note(name: ImageName, platform: str, cache: Path) -> Path:
    return cache / "references" / canonical.digest([str(name), platform])


def _remembered(name: ImageName, platform: str, cache: Path) -> str:
    """Give the digest that a reference meant when it was last pulled; empty when it never was."""
    try:
        digest = _note(name, platform, cache).read_text(encoding="ascii")
    except OSError:
        return ""
    return digest if DIGEST.fullmatch(digest) and place(cache, digest).is_file() else ""


def push(archive: Path, target: str) -> str:
    """Upload the image in an archive, with an index where it has one for each of several platforms.

    Blobs that are already there are left out, and those of a base in the same registry are mounted.

    Args:
        archive: An archive that `archive.write` made.
        target: Registry reference.

    Returns:
        The reference with the digest that the registry now serves.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When the registry serves another digest than the archive has.
    """
    name = ImageName.parse(target)
    files = layout.index_archive(archive)

    def find(digest: str) -> Blob:
        item = files[f"blobs/sha256/{digest.removeprefix('sha256:')}"]
        return Blob(archive, item.size, item.offset, digest)

    index = files["index.json"]
    entry = layout.document(Blob(archive, index.size, index.offset).read(), str(archive))["manifests"][0]
    source = _source(entry, find, name)
    with Registry(name, scopes(name, source)) as registry:
        publish(registry, entry, find, name.tag or entry["digest"], source)
    return str(ImageName(name.registry, name.repository, name.tag, entry["digest"]))


def publish(
    registry: Registry, entry: Mapping[str, Any], find: Callable[[str], Blob], reference: str, source: str = ""
) -> int:
    """Upload what a descriptor means, the blobs it names first, so that nothing half-sent is ever served.

    Args:
        registry: Where to.
        entry: Descriptor of a manifest or index.
        find: Gives a blob by its digest.
        reference: Tag or digest to serve it under.
        source: Repository of the same registry that blobs may be mounted from.

    Returns:
        Bytes of the blobs that were sent.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When the registry serves something else in the end.
    """
    data = find(entry["digest"]).read()
    body = layout.document(data, str(entry["digest"]))
    sent = 0
    for item in body.get("manifests", ()):
        sent += publish(registry, item, find, item["digest"], source)
    for item in (body["config"], *body["layers"]) if "layers" in body else ():
        sent += upload(registry, find(item["digest"]), source)
    put(registry, reference, data, str(entry["mediaType"]))
    if manifest(registry, reference) != data:
        raise StageError(f"the registry serves another image than {entry['digest']}", where=str(registry.name))
    return sent


def _source(entry: Mapping[str, Any], find: Callable[[str], Blob], name: ImageName) -> str:
    """Name the repository that an image's base is in, when that is in the same registry; else nothing."""
    body = layout.document(find(entry["digest"]).read(), str(name))
    if "manifests" in body:
        return _source(body["manifests"][0], find, name)
    config = layout.document(find(body["config"]["digest"]).read(), str(name))
    labels = layout.mapping(layout.mapping(config.get("config")).get("Labels"))
    label = str(labels.get("org.opencontainers.image.base.name", ""))
    try:
        base = ImageName.parse(label)
    except UsageError:
        return ""
    within = str(base) == label and base.registry == name.registry and base.repository != name.repository
    return base.repository if within else ""
