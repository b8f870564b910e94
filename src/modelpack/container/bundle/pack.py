"""From an artifact of a store to an OCI artifact: one layer a file, uncompressed, the same bytes every time.

CNCF ModelPack specification, "Guidance on Layers": weights not compressed, metadata constant, names sorted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.artifact import MANIFEST as TRUTH
from modelpack.artifact import MODEL_FILE
from modelpack.container.blob import Blob
from modelpack.container.bundle import media, texts
from modelpack.container.bundle.place import appearing, copy
from modelpack.container.http import Registry
from modelpack.container.layers import Entry, chunks
from modelpack.container.plan import timestamp
from modelpack.container.reference import ImageName
from modelpack.container.registry import publish
from modelpack.container.upload import scopes
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelpack.artifact import Artifact
    from modelpack.container.bundle.texts import Description

CARD, KITFILE, MODELFILE = "README.md", "Kitfile", "Modelfile"
_MODE = 0o644


@dataclass(frozen=True)
class Bundle:
    """An OCI artifact that was not sent yet.

    Attributes:
        manifest: Its manifest.
        blobs: Everything it names, and itself, by digest.
    """

    manifest: Blob
    blobs: Mapping[str, Blob]

    @property
    def digest(self) -> str:
        """What registries call it."""
        return self.manifest.digest

    @property
    def size(self) -> int:
        """Bytes of it all."""
        return sum(blob.size for blob in self.blobs.values())

    def descriptor(self, tag: str = "") -> dict[str, Any]:
        """Describe it as an entry of an index."""
        named = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        return {
            "mediaType": media.MANIFEST,
            "artifactType": media.ARTIFACT,
            "digest": self.digest,
            "size": self.manifest.size,
            **named,
        }


@dataclass(frozen=True)
class _Layer:
    name: str
    media_type: str
    blob: Blob


def pack(artifact: Artifact, about: Description, scratch: Path) -> Bundle:
    """Make an OCI artifact of a model.

    Args:
        artifact: The model; compare it with its hashes first.
        about: What is said of it.
        scratch: Directory for what is written beside it; needed as long as the bundle is.
    """
    main = MODEL_FILE[artifact.kind]
    names = sorted(item.name for item in artifact.manifest.files)
    weights = sorted((name for name in names if name.startswith(main)), key=lambda name: (name != main, name))
    settings = sorted({TRUTH, *names} - set(weights))
    documents = [name for name in (CARD,) if name not in names]
    sizes = {item.name: item.size for item in artifact.manifest.files}
    beside = {
        CARD: texts.card(about, sizes),
        KITFILE: texts.kitfile(about, weights, settings, documents),
        MODELFILE: texts.modelfile(about, weights, settings, documents),
    }
    written = {name: _written(scratch / name, data) for name, data in beside.items() if name not in names}
    layers = [
        *(_Layer(name, media.WEIGHTS, _file(artifact.path / name)) for name in weights),
        *(_Layer(name, media.SETTINGS, _file(artifact.path / name)) for name in settings),
        *(_Layer(name, media.DOCUMENTS, blob) for name, blob in sorted(written.items())),
    ]
    config = _written(scratch / "config.json", texts.config(about, [layer.blob.digest for layer in layers]))
    manifest = _written(scratch / "manifest.json", _manifest(about, config, layers))
    return Bundle(manifest, {blob.digest: blob for blob in (*(layer.blob for layer in layers), config, manifest)})


def _file(path: Path) -> Blob:
    return Blob(path, path.stat().st_size).known()


def _written(path: Path, data: bytes) -> Blob:
    path.write_bytes(data)
    return _file(path)


def _manifest(about: Description, config: Blob, layers: list[_Layer]) -> bytes:
    notes = {"title": about.name, "version": about.version, "revision": about.artifact}
    if about.epoch is not None:
        notes["created"] = timestamp(about.epoch)
    return canonical.encode(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": media.ARTIFACT,
            "config": {"mediaType": media.CONFIG, "digest": config.digest, "size": config.size},
            "layers": [_described(layer, about.epoch or 0) for layer in layers],
            "annotations": {f"org.opencontainers.image.{key}": value for key, value in notes.items()},
        }
    )


def _described(layer: _Layer, epoch: int) -> dict[str, Any]:
    metadata = {
        "name": layer.name.rpartition("/")[2],
        "mode": _MODE,
        "uid": 0,
        "gid": 0,
        "size": layer.blob.size,
        "mtime": timestamp(epoch),
        "typeflag": 0,
    }
    return {
        "mediaType": layer.media_type,
        "digest": layer.blob.digest,
        "size": layer.blob.size,
        "annotations": {
            media.PATH: layer.name,
            media.METADATA: json.dumps(metadata, separators=(",", ":")),
            media.UNTESTED: "false",
            "org.opencontainers.image.title": layer.name,  # by this the tool oras names files
        },
    }


def push(bundle: Bundle, target: str, tell: Callable[[int, int], None]) -> tuple[str, int]:
    """Send a bundle to a registry; what is there already is not sent again.

    Args:
        bundle: What to send.
        target: Registry reference.
        tell: Receives how many bytes of how many are there.

    Returns:
        The reference with its digest, and how many bytes were sent.

    Raises:
        MissingError: When the registry does not answer or refuses.
        StageError: When a file changed meanwhile, or the registry serves something else in the end.
        UsageError: When `target` is no reference.
    """
    name = ImageName.parse(target)
    if name.digest not in {"", bundle.digest}:
        raise UsageError(f"the artifact has the digest {bundle.digest}", where=target, then="write [registry/]name:tag")
    total = bundle.size - bundle.manifest.size
    done = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        tell(done, total)

    with Registry(name, scopes(name), moved=moved) as registry:
        sent = publish(registry, bundle.descriptor(), bundle.blobs.__getitem__, name.tag or bundle.digest)
    return str(ImageName(name.registry, name.repository, name.tag, bundle.digest)), sent


def write(bundle: Bundle, output: Path, tag: str) -> None:
    """Write a bundle as an OCI image layout: an archive where the name ends in ``.tar``, else a directory.

    Args:
        bundle: What to write.
        output: A file, replaced when it is there; or a directory that is empty or not there yet.
        tag: What to call it inside.

    Raises:
        StageError: When it cannot be written, or a file changed meanwhile.
        UsageError: When the directory is not empty.
    """
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [bundle.descriptor(tag)],
    }
    entries = [
        Entry("oci-layout", canonical.encode({"imageLayoutVersion": "1.0.0"})),
        Entry("index.json", canonical.encode(index)),
        *(Entry(f"blobs/sha256/{digest[7:]}", blob) for digest, blob in sorted(bundle.blobs.items())),
    ]
    archive = output.suffix == ".tar"
    with appearing(output, is_file=archive) as draft:
        if archive:
            with draft.open("wb") as stream:
                for piece in chunks(entries):
                    stream.write(piece)
        else:
            for entry in entries:
                copy(entry, draft / entry.name)
