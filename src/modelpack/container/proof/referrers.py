"""Documents attached to an image: how their manifests are written, and what they are (OCI image specification 1.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelpack import canonical
from modelpack.container.archive import INDEX, Archive, Attached
from modelpack.container.layout import mapping
from modelpack.container.oci import CONFIG, MANIFEST, sha256
from modelpack.container.proof import provenance, sbom

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"
ATTESTATION = "application/vnd.dev.cosign.artifact.att.v1+json"
TAGS = {SIGNATURE: "sig", ATTESTATION: "att"}
"""Endings of the tags where cosign looks for what is about ``sha256:<hex>``: ``sha256-<hex>.sig``."""
PREDICATE = "predicateType"


@dataclass(frozen=True)
class Subject:
    """The manifest or index that a document is about, as descriptors name it."""

    media: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Give it as a descriptor."""
        return {"mediaType": self.media, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Part:
    """One blob of a document: its media type, its bytes, and what its descriptor says of it."""

    media: str
    data: bytes
    annotations: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Give its descriptor."""
        plain = {"mediaType": self.media, "digest": sha256(self.data), "size": len(self.data)}
        return {**plain, **({"annotations": dict(self.annotations)} if self.annotations else {})}


class Seal(Protocol):
    """Someone who signs.

    Attributes:
        label: What was done, for people: ``signed``, or by whom too.
    """

    @property
    def label(self) -> str:
        """Tell what was done."""

    def image(self, subject: Subject, repository: str) -> Attached:
        """Sign an image that lies in a repository."""

    def statements(self, subject: Subject, texts: Mapping[str, bytes]) -> Sequence[Attached]:
        """Sign statements about an image; predicate type → statement."""


def subjects(archive: Archive) -> list[Subject]:
    """Give what a signature is about: every image, and the index of several."""
    found = [Subject(MANIFEST, image.digest, len(image.manifest)) for image in archive.images]
    return found if len(found) == 1 else [*found, Subject(INDEX, archive.digest, len(archive.index))]


def attach(
    kind: str,
    subject: Subject,
    parts: Sequence[Part],
    config: Part | None = None,
    notes: Mapping[str, str] | None = None,
) -> Attached:
    """Write a document's manifest; `notes` are its annotations."""
    config = config or Part(EMPTY, b"{}", {})
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": config.to_json(),
        "layers": [part.to_json() for part in parts],
        "subject": subject.to_json(),
        **({"annotations": dict(notes)} if notes else {}),
    }
    return Attached(kind, canonical.encode(manifest), (config.data, *(part.data for part in parts)))


def plain(subject: Subject, bom: bytes, made: bytes) -> tuple[Attached, Attached]:
    """Attach an image's list of ingredients and its provenance."""
    return (
        attach(sbom.TYPE, subject, [Part(sbom.TYPE, bom, {})]),
        attach(provenance.TYPE, subject, [Part(provenance.TYPE, made, {PREDICATE: provenance.PREDICATE})]),
    )


def configuration(digests: Sequence[str]) -> Part:
    """Write the image configuration that cosign's own signatures have, for layers of these digests."""
    rootfs = {"type": "layers", "diff_ids": list(digests)}
    return Part(CONFIG, canonical.encode({"architecture": "", "config": {}, "os": "", "rootfs": rootfs}), {})


def sealed(archive: Archive, repository: str, seal: Seal) -> Archive:
    """Sign everything about an archive: its images, their index, and what was attached to each."""
    new = [seal.image(subject, repository) for subject in subjects(archive)]
    for subject in subjects(archive)[: len(archive.images)]:
        statements = dict(_statements(archive, subject, repository))
        new += seal.statements(subject, statements) if statements else []
    names = {(item.kind, about(item)) for item in new}
    kept = [item for item in archive.attached if (item.kind, about(item)) not in names]
    return Archive(archive.images, archive.host, (*kept, *new))


def about(item: Attached) -> str:
    """Tell the digest of what a document is about; empty where it does not say."""
    return str(mapping(mapping(json.loads(item.manifest)).get("subject")).get("digest", ""))


def parts(item: Attached) -> Iterator[Part]:
    """Give the blobs of a document, as its manifest describes them."""
    layers = mapping(json.loads(item.manifest)).get("layers")
    for layer, data in zip(layers if isinstance(layers, list) else (), item.blobs[1:], strict=False):
        notes = {key: str(value) for key, value in mapping(mapping(layer).get("annotations")).items()}
        yield Part(str(mapping(layer).get("mediaType", "")), data, notes)


def _statements(archive: Archive, subject: Subject, name: str) -> Iterator[tuple[str, bytes]]:
    """Give the statements to sign: the provenance is one, the list of ingredients becomes one."""
    for item in archive.attached:
        if about(item) != subject.digest:
            continue
        if item.kind == provenance.TYPE:
            yield provenance.PREDICATE, item.blobs[1]
        elif item.kind == sbom.TYPE:
            bom = json.loads(item.blobs[1])
            yield sbom.PREDICATE, canonical.encode(provenance.statement(name, subject.digest, sbom.PREDICATE, bom))
