"""Images as files: an OCI layout and a docker archive in one tar, with an image for each platform.

Several images have one index, which is what a registry gets and a machine chooses from (OCI image specification 1.1,
"Image Index"). `docker load` knows no index: it gets the image of the machine that the archive was written on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container.base import host_platform
from modelpack.container.layers import Entry, chunks
from modelpack.container.layout import mapping
from modelpack.container.oci import MANIFEST, Image, sha256
from modelpack.container.reference import ImageName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ARCHIVE = "image.tar"
"""Payload of an image artifact: the image itself."""
RECEIPT = "image.json"
"""Payload of an image artifact: what the image is, and who built it."""
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Attached:
    """A document about an image, which lies beside it: a manifest with a subject (OCI distribution 1.1, "referrers").

    Attributes:
        kind: Its artifact type.
        manifest: Its manifest, exact bytes.
        blobs: What the manifest names, exact bytes.
    """

    kind: str
    manifest: bytes
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """``sha256:`` of its manifest."""
        return sha256(self.manifest)


@dataclass(frozen=True)
class Archive:
    """One image, or one for each of several platforms, and what is attached to them.

    Attributes:
        images: By platform, sorted.
        host: Platform whose image `docker load` takes, where there is one.
        attached: Documents about them.
    """

    images: tuple[Image, ...]
    host: str
    attached: tuple[Attached, ...] = ()

    @property
    def loaded(self) -> Image:
        """The one that `docker load` takes: the host's, else the first."""
        return next((image for image in self.images if image.platform == self.host), self.images[0])

    @property
    def index(self) -> bytes:
        """The index of several images, exact bytes."""
        return canonical.encode(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [_descriptor(image) for image in self.images]}
        )

    @property
    def digest(self) -> str:
        """What registries call it: ``sha256:`` of the manifest, or of the index of several."""
        return sha256(self.index) if len(self.images) > 1 else self.images[0].digest

    def summary(self) -> dict[str, Any]:
        """Describe it as JSON: the image that is loaded, and every one where there are several."""
        if len(self.images) == 1:
            return self.loaded.summary()
        each = [image.summary() for image in self.images]
        return {
            **self.loaded.summary(),
            "digest": self.digest,
            "platform": ",".join(image.platform for image in self.images),
            "size": max(image.size for image in self.images),
            "images": each,
        }

    def entries(self) -> list[Entry]:
        """List the files of the archive that `docker load`, `podman load` and ``skopeo oci-archive:`` all take."""
        blobs = {
            layer.digest: Entry(_blob(layer.digest), layer.content) for each in self.images for layer in each.layers
        }
        documents = [data for image in self.images for data in (image.config, image.manifest)]
        documents += [data for item in self.attached for data in (item.manifest, *item.blobs)]
        for data in [*documents, *([self.index] if len(self.images) > 1 else [])]:
            blobs[sha256(data)] = Entry(_blob(sha256(data)), data)
        head = {
            "oci-layout": {"imageLayoutVersion": "1.0.0"},
            "index.json": {"schemaVersion": 2, "mediaType": INDEX, "manifests": [self._named(), *self._referrers()]},
            "manifest.json": [
                {
                    "Config": _blob(self.loaded.id),
                    "RepoTags": [self.loaded.tag],
                    "Layers": [_blob(layer.digest) for layer in self.loaded.layers],
                }
            ],
        }
        first = [Entry(name, canonical.encode(value)) for name, value in head.items()]
        return [*first, *(blobs[digest] for digest in sorted(blobs))]

    def _named(self) -> dict[str, Any]:
        """Describe what the archive holds under its name."""
        tag = self.loaded.tag
        names = {
            "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
            "io.containerd.image.name": str(ImageName.parse(tag)),
        }
        if len(self.images) == 1:
            return {**_descriptor(self.images[0]), "annotations": names}
        return {"mediaType": INDEX, "digest": self.digest, "size": len(self.index), "annotations": names}

    def _referrers(self) -> list[dict[str, Any]]:
        return [_listed(item) for item in sorted(self.attached, key=lambda item: item.digest)]


def _descriptor(image: Image) -> dict[str, Any]:
    system, _, architecture = image.platform.partition("/")
    return {
        "mediaType": MANIFEST,
        "digest": image.digest,
        "size": len(image.manifest),
        "platform": {"os": system, "architecture": architecture},
    }


def _listed(item: Attached) -> dict[str, Any]:
    """Describe a document, with its manifest's annotations as registries repeat them."""
    plain = {"mediaType": MANIFEST, "artifactType": item.kind, "digest": item.digest, "size": len(item.manifest)}
    notes = mapping(json.loads(item.manifest)).get("annotations")
    return {**plain, "annotations": notes} if notes else plain


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def write(images: Sequence[Image], path: Path, attached: Sequence[Attached] = ()) -> Archive:
    """Write an archive.

    Args:
        images: One for each platform.
        path: The file.
        attached: Documents about them.

    Raises:
        OSError: When it cannot be written.
        StageError: When a layer of a base is damaged.
    """
    archive = Archive(tuple(sorted(images, key=lambda image: image.platform)), host_platform(), tuple(attached))
    with path.open("wb") as stream:
        for piece in chunks(archive.entries()):
            stream.write(piece)
    return archive
