"""Documents attached to images in registries: put beside what they are about, and found there again.

A registry of OCI distribution 1.1 lists them itself; for an older one the list is kept under the tag ``sha256-<hex>``
("Referrers Tag Schema"). Signatures and attestations have cosign's own tags as well.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container import layout, registry
from modelpack.container.archive import INDEX
from modelpack.container.blob import Blob
from modelpack.container.download import download, keep, place
from modelpack.container.http import Registry
from modelpack.container.oci import MANIFEST, sha256
from modelpack.container.proof.referrers import TAGS, configuration
from modelpack.container.reference import DIGEST, ImageName
from modelpack.container.upload import put, scopes, upload
from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def publish(archive: Path, target: str) -> int:
    """Send the documents in an archive to where its image was pushed.

    Args:
        archive: An archive that `archive.write` made.
        target: Registry reference.

    Returns:
        How many there are.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When it serves something else in the end.
    """
    name, files = ImageName.parse(target), layout.index_archive(archive)

    def blob(path: str, digest: str = "") -> Blob:
        return Blob(archive, files[path].size, files[path].offset, digest)

    def find(digest: str) -> Blob:
        return blob(f"blobs/sha256/{digest.removeprefix('sha256:')}", digest)

    index = layout.document(blob("index.json").read(), str(archive))
    documents = [item for item in index["manifests"] if "artifactType" in item]
    with Registry(name, scopes(name)) as connection:
        for item in documents:
            _publish(connection, item, find)
    return len(documents)


def _publish(connection: Registry, item: Mapping[str, Any], find: Callable[[str], Blob]) -> None:
    registry.publish(connection, item, find, item["digest"])
    data = find(item["digest"]).read()
    subject = str(json.loads(data)["subject"]["digest"])
    if item["artifactType"] in TAGS:
        tag = f"{_name(subject)}.{TAGS[item['artifactType']]}"
        put(connection, tag, _joined(connection, tag, data), MANIFEST)
    if _listed(connection, subject) is None:
        known = _tagged(connection, _name(subject))
        kept = [other for other in known if other.get("digest") != item["digest"]]
        body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, dict(item)]}
        put(connection, _name(subject), canonical.encode(body), INDEX)


def _joined(connection: Registry, tag: str, data: bytes) -> bytes:
    """Keep what others signed: their layers, which the repository has, before ours."""
    try:
        known = layout.document(registry.manifest(connection, tag), str(connection.name)).get("layers")
    except UsageError:
        return data
    mine = json.loads(data)
    theirs = [layer for layer in known if layer not in mine["layers"]] if isinstance(known, list) else []
    if not theirs:
        return data
    layers = [*theirs, *mine["layers"]]
    config = configuration([str(layout.mapping(layer).get("digest")) for layer in layers])
    with tempfile.NamedTemporaryFile() as file:
        file.write(config.data)
        file.flush()
        upload(connection, Blob(Path(file.name), len(config.data), digest=sha256(config.data)))
    return canonical.encode({**mine, "config": config.to_json(), "layers": layers})


def _name(digest: str) -> str:
    return digest.replace(":", "-")


def _listed(connection: Registry, subject: str) -> list[dict[str, Any]] | None:
    """Ask a registry what is attached to something; None where it does not know how to answer."""
    answer = connection.send("GET", f"referrers/{subject}", allow=(200, 400, 404, 405))
    with answer:
        if answer.status_code != 200:
            return None
        return _entries(answer.content, str(connection.name))


def _tagged(connection: Registry, tag: str) -> list[dict[str, Any]]:
    """Read the list that is kept under a tag; empty where there is none."""
    try:
        return _entries(registry.manifest(connection, tag), str(connection.name))
    except UsageError:
        return []


def _entries(data: bytes, where: str) -> list[dict[str, Any]]:
    listed = layout.document(data, where).get("manifests")
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def fetch(text: str, cache: Path) -> tuple[dict[str, Any], Callable[[str], Blob]]:
    """Fetch an image and all that is attached to it.

    Args:
        text: Registry reference.
        cache: Directory for blobs.

    Returns:
        An index whose first entry is the image, and what finds its blobs.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When bytes differ from their digest.
        UsageError: When there is no such image.
    """
    name = ImageName.parse(text)

    def find(digest: str) -> Blob:
        path = place(cache, digest)
        if not DIGEST.fullmatch(digest) or not path.is_file():
            raise StageError(f"the registry has no {digest}", where=str(name))
        return Blob(path, path.stat().st_size, digest=digest)

    with Registry(name) as connection:
        image = _manifest(connection, name.digest or name.tag, cache)
        about = [image["digest"], *image.pop("below")]
        documents: dict[str, dict[str, Any]] = {}
        for subject in about:
            for item in _attached(connection, subject):
                found = _listed_document(connection, str(item.get("digest")), cache)
                documents[found["digest"]] = {key: value for key, value in found.items() if key != "below"}
    return {"manifests": [image, *documents.values()]}, find


def _listed_document(connection: Registry, digest: str, cache: Path) -> dict[str, Any]:
    """Fetch a document that a registry says it has.

    Raises:
        StageError: When it has not.
    """
    try:
        return _manifest(connection, digest, cache)
    except UsageError as error:
        raise StageError(f"the registry lists {digest}, which it has not", where=str(connection.name)) from error


def _attached(connection: Registry, subject: str) -> list[dict[str, Any]]:
    """List what is attached to a manifest: by the registry, under the tag for that, and under cosign's tags."""
    listed = _listed(connection, subject)
    found = _tagged(connection, _name(subject)) if listed is None else listed
    for ending in TAGS.values():
        try:
            data = registry.manifest(connection, f"{_name(subject)}.{ending}")
        except UsageError:
            continue
        found.append({"digest": sha256(data)})
    return found


def _manifest(connection: Registry, reference: str, cache: Path) -> dict[str, Any]:
    """Fetch a manifest or index with everything below it; gives its descriptor, and the digests of images below."""
    data = registry.manifest(connection, reference)
    body = layout.document(data, str(connection.name))
    keep(cache, sha256(data), data)
    listed = body.get("manifests")
    parts = listed if isinstance(listed, list) else []
    below = [_manifest(connection, str(layout.mapping(item).get("digest")), cache) for item in parts]
    for item in [body["config"], *body.get("layers", ())] if "config" in body else ():
        download(connection, item, cache)
    media = str(body.get("mediaType", MANIFEST))
    return {"mediaType": media, "digest": sha256(data), "size": len(data), "below": [item["digest"] for item in below]}
