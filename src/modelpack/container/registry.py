"""Images in registries: pulled as bases, pushed as results, every byte compared with its digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container import layout
from modelpack.container.blob import MAX_JSON, Blob
from modelpack.container.http import Registry, limited, received
from modelpack.container.reference import DIGEST, ImageName
from modelpack.errors import MissingError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ACCEPT = {"Accept": ", ".join((*layout.MANIFESTS, *layout.INDEXES))}
MAX_BLOB = 64 << 30
"""Largest layer that is downloaded, in bytes."""


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
        with Registry(name) as registry:
            known = _fetch(registry, platform, cache)
        note = _note(name, platform, cache)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(known, encoding="ascii")
    if not known:
        raise MissingError(f"{name} is not in the cache", where=str(cache), then="build once without --offline")
    return layout.manifest_image(
        layout.document(_cached(cache, known).read(), str(name)),
        known,
        lambda digest: _cached(cache, digest),
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
        _download(registry, item, cache)
    _keep(cache, digest, data)
    return digest


def manifest(registry: Registry, reference: str) -> bytes:
    """Fetch a manifest or index by tag or digest, and compare it with the digest that it should have.

    Raises:
        StageError: When they differ.
    """
    response = registry.send("GET", f"manifests/{reference}", headers=_ACCEPT)
    data = limited(response, MAX_JSON, str(registry.name))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    promised = reference if DIGEST.fullmatch(reference) else response.headers.get("Docker-Content-Digest", digest)
    if promised != digest:
        raise StageError(f"the registry sent a manifest with digest {digest}, not {promised}", where=str(registry.name))
    return data


def _download(registry: Registry, descriptor: Any, cache: Path) -> None:
    """Fetch one blob into the cache, refusing more bytes than its descriptor says."""
    where = str(registry.name)
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    size = descriptor.get("size") if isinstance(descriptor, dict) else None
    named = isinstance(digest, str) and DIGEST.fullmatch(digest)
    if not named or not isinstance(size, int) or not 0 <= size <= MAX_BLOB:
        raise StageError("the manifest describes a blob without a usable digest and size", where=where)
    path = _place(cache, str(digest))
    if path.is_file() and path.stat().st_size == size:
        return
    pieces = received(registry.send("GET", f"blobs/{digest}"), where)
    path.parent.mkdir(parents=True, exist_ok=True)
    hasher, left = hashlib.sha256(), size
    with contextlib.closing(pieces), tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        try:
            for piece in pieces:
                hasher.update(piece)
                left -= len(piece)
                if left < 0:
                    break
                draft.write(piece)
            draft.flush()
            intact = not left and f"sha256:{hasher.hexdigest()}" == digest
            if intact:
                Path(draft.name).replace(path)
        finally:
            Path(draft.name).unlink(missing_ok=True)
    if not intact:
        raise StageError(f"the registry sent other bytes than {digest}", where=where)


def _place(cache: Path, digest: str) -> Path:
    return cache / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _keep(cache: Path, digest: str, data: bytes) -> None:
    path = _place(cache, digest)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def _cached(cache: Path, digest: str) -> Blob:
    path = _place(cache, digest)
    if not DIGEST.fullmatch(digest) or not path.is_file():
        raise MissingError(f"{digest} is not in the cache", where=str(cache), then="build once without --offline")
    return Blob(path, path.stat().st_size, digest=digest)


def _note(name: ImageName, platform: str, cache: Path) -> Path:
    return cache / "references" / canonical.digest([str(name), platform])


def _remembered(name: ImageName, platform: str, cache: Path) -> str:
    """Give the digest that a reference meant when it was last pulled; empty when it never was."""
    try:
        digest = _note(name, platform, cache).read_text(encoding="ascii")
    except OSError:
        return ""
    return digest if DIGEST.fullmatch(digest) and _place(cache, digest).is_file() else ""


def push(archive: Path, target: str) -> str:
    """Upload the image in an archive, blobs that are already there left out.

    Args:
        archive: An archive that `archive.write` made.
        target: Registry reference.

    Returns:
        The reference with the digest that the registry now serves.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When the registry says or serves another digest than the archive has.
    """
    name = ImageName.parse(target)
    files = layout.index_archive(archive)

    def blob(digest: str) -> Blob:
        item = files[f"blobs/sha256/{digest.removeprefix('sha256:')}"]
        return Blob(archive, item.size, item.offset, digest)

    index = files["index.json"]
    entry = layout.document(Blob(archive, index.size, index.offset).read(), str(archive))["manifests"][0]
    data = blob(entry["digest"]).read()
    with Registry(name) as registry:
        _upload_below(registry, layout.document(data, str(archive)), blob)
        headers = {"Content-Type": str(entry["mediaType"])}
        answer = registry.send(
            "PUT", f"manifests/{name.tag or entry['digest']}", headers=headers, body=data, allow=(200, 201)
        )
        said = answer.headers.get("Docker-Content-Digest", entry["digest"])
        if said != entry["digest"] or manifest(registry, name.tag or entry["digest"]) != data:
            raise StageError(f"the registry serves {said}, pushed was {entry['digest']}", where=str(name))
    return str(ImageName(name.registry, name.repository, name.tag, entry["digest"]))


def _upload_below(registry: Registry, body: Mapping[str, Any], blob: Callable[[str], Blob]) -> None:
    """Upload what a manifest names, or an index: its manifests with what they name."""
    for item in body.get("manifests", ()):
        below = blob(item["digest"])
        _upload_below(registry, layout.document(below.read(), str(below.path)), blob)
        headers = {"Content-Type": str(item["mediaType"])}
        registry.send("PUT", f"manifests/{item['digest']}", headers=headers, body=below.read(), allow=(200, 201))
    for item in (body["config"], *body["layers"]) if "layers" in body else ():
        _upload(registry, blob(item["digest"]))


def _upload(registry: Registry, blob: Blob) -> None:
    """Upload one blob in one piece, unless the registry has it (distribution specification, "Pushing a blob")."""
    if registry.send("HEAD", f"blobs/{blob.digest}", allow=(200, 404)).status_code == 200:
        return
    for _ in blob.chunks():
        pass  # a damaged blob is found here, not by the registry
    place = registry.send("POST", "blobs/uploads/", allow=(202,)).headers.get("Location", "")
    separator = "&" if "?" in place else "?"
    registry.send(
        "PUT",
        f"{place}{separator}digest={blob.digest}",
        headers={"Content-Type": "application/octet-stream"},
        body=blob,
        allow=(201,),
    )
