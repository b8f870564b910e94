"""Images put together without any engine: configuration, manifest and layers.

The image's id is the SHA-256 of its configuration, so it is known before an engine has seen the image (OCI image
specification 1.1, "ImageID"; an engine with the containerd store shows the manifest's digest instead).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container.layers import chunks
from modelpack.container.packed import Packed, pack
from modelpack.container.tree import PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelpack.container.base import Base
    from modelpack.container.layers import Readable
    from modelpack.container.layout import Raw
    from modelpack.container.plan import ImageContents

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_SECOND = 1_000_000_000
_INHERITED = ("Volumes",)
_SELDOM = ("cuda", "wheels")


@dataclass(frozen=True)
class Stored:
    """One layer as it lies in an image.

    Attributes:
        name: ``base``, ``wheels``, ``server`` or ``model``.
        digest: ``sha256:`` of its compressed bytes.
        diff_id: ``sha256:`` of the tar inside.
        size: Compressed bytes.
        unpacked: Bytes of the tar inside.
        content: Where the compressed bytes are.
    """

    name: str
    digest: str
    diff_id: str
    size: int
    unpacked: int
    content: Path | Readable


@dataclass(frozen=True)
class Image:
    """A finished image.

    Attributes:
        config: Its configuration, exact bytes.
        manifest: Its manifest, exact bytes.
        layers: Lowest first.
        tag: ``name:tag`` that engines show.
        platform: ``os/architecture``.
        base: What it stands on, as JSON; empty for one that was found somewhere.
    """

    config: bytes
    manifest: bytes
    layers: tuple[Stored, ...]
    tag: str
    platform: str
    base: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What engines call it: ``sha256:`` of the configuration."""
        return sha256(self.config)

    @property
    def digest(self) -> str:
        """What registries call it: ``sha256:`` of the manifest."""
        return sha256(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of all layers, unpacked."""
        return sum(item.unpacked for item in self.layers)

    def summary(self) -> dict[str, Any]:
        """Describe it as JSON."""
        return {
            "id": self.id,
            "digest": self.digest,
            "tag": self.tag,
            "platform": self.platform,
            "size": self.size,
            "compressed": sum(item.size for item in self.layers),
            "layers": [
                {"name": item.name, "digest": item.digest, "diff_id": item.diff_id, "size": item.size,
                 "unpacked": item.unpacked}
                for item in self.layers
            ],
            "base": dict(self.base),
        }  # fmt: skip


def sha256(data: bytes) -> str:
    """Give ``sha256:`` and the hexadecimal digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image(base: Base, contents: ImageContents, tag: str, scratch: Path, cache: Path) -> Image:
    """Put an image together: compress its layers, pass the base's through.

    Args:
        base: What it stands on.
        contents: What is put on it.
        tag: ``name:tag``.
        scratch: Directory for compressed layers.
        cache: Where those that change seldom are kept, see `packed.pack`.

    Raises:
        StageError: When a layer of the base is damaged.
        OSError: When a file cannot be read or written.
    """
    stored = base_layers(base, scratch, cache)
    for layer in contents.layers:
        tar = partial(chunks, layer.entries, layer.epoch)
        packed = pack(tar, scratch / f"{layer.name}.tar.gz", cache if layer.name in _SELDOM else None)
        stored.append(_stored(layer.name, packed))
    config = configuration(base, contents, [item.diff_id for item in stored])
    return finish(canonical.encode(config), stored, tag, base)


def base_image(base: Base, tag: str, scratch: Path, cache: Path) -> Image:
    """Put a base alone into an image, for an engine that builds on it."""
    stored = base_layers(base, scratch, cache)
    rootfs = {"type": "layers", "diff_ids": [item.diff_id for item in stored]}
    config = {**base.config, "history": base_history(base), "rootfs": rootfs}
    return finish(canonical.encode(config), stored, tag, base)


def repacked(raw: Raw, names: Sequence[str], tag: str, base: Base, *, scratch: Path, cache: Path) -> Image:
    """Put an image that an engine exported into our form; its configuration, and so its id, stays.

    Args:
        raw: The image as it was found.
        names: What to call its layers.
        tag: ``name:tag``.
        base: What it stands on.
        scratch: Directory for compressed layers.
        cache: See `packed.pack`.
    """
    stored = [
        _stored(name, pack(blob.tar_chunks, scratch / f"layer-{number}.tar.gz", cache if name != "model" else None))
        for number, (name, blob) in enumerate(zip(names, raw.layers, strict=True))
    ]
    return finish(raw.text, stored, tag, base)


def finish(config: bytes, layers: Sequence[Stored], tag: str, base: Base) -> Image:
    """Write the manifest of an image."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": LAYER, "digest": item.digest, "size": item.size} for item in layers],
    }
    below = {"name": base.ref.label, "digest": base.digest, "python": base.python.path}
    return Image(config, canonical.encode(manifest), tuple(layers), tag, base.platform, below)


def base_layers(base: Base, scratch: Path, cache: Path) -> list[Stored]:
    """Pass a base's layers through as they are; one that is not gzip is compressed."""
    stored = []
    for number, layer in enumerate(base.layers):
        blob = layer.blob
        if blob.compression == "gzip":
            stored.append(Stored("base", blob.digest, layer.diff_id, blob.size, layer.unpacked, blob))
        else:
            stored.append(_stored("base", pack(blob.tar_chunks, scratch / f"base-{number}.tar.gz", cache)))
    return stored


def _stored(name: str, packed: Packed) -> Stored:
    return Stored(name, packed.digest, packed.diff_id, packed.size, packed.unpacked, packed.path)


def configuration(base: Base, contents: ImageContents, diff_ids: Sequence[str]) -> dict[str, Any]:
    """Write an image's configuration: the base's environment, labels, ports and volumes, ours over them.

    An engine gives a base without PATH the usual one, so this does the same.
    """
    inherited = base.settings
    env = {"PATH": PATH, **base.env, **contents.env}
    settings: dict[str, Any] = {
        **{key: inherited[key] for key in _INHERITED if inherited.get(key)},
        "User": contents.user,
        "ExposedPorts": {**(inherited.get("ExposedPorts") or {}), **{port: {} for port in contents.ports}},
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Entrypoint": list(contents.entrypoint),
        "WorkingDir": contents.workdir,
        "Labels": {**(inherited.get("Labels") or {}), **contents.labels},
        "StopSignal": contents.stop_signal,
        "Healthcheck": healthcheck(contents),
    }
    ours = [{"created": contents.created, "created_by": f"modelpack: {layer.name}"} for layer in contents.layers]
    last = {"created": contents.created, "created_by": "modelpack: configuration", "empty_layer": True}
    return {
        "architecture": base.python.architecture,
        "os": "linux",
        **({"variant": base.config["variant"]} if base.config.get("variant") else {}),
        "created": contents.created,
        "config": settings,
        "history": [*base_history(base), *ours, last],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def healthcheck(contents: ImageContents) -> dict[str, Any]:
    """Write the health check as engines keep it: times in nanoseconds."""
    check = contents.healthcheck
    return {
        "Test": ["CMD", *check.command],
        "Interval": check.interval * _SECOND,
        "Timeout": check.timeout * _SECOND,
        "StartPeriod": check.start_period * _SECOND,
        "Retries": check.retries,
    }


def base_history(base: Base) -> list[dict[str, Any]]:
    """Give the base's history, or one line per layer where it does not count its layers right."""
    history = base.config.get("history")
    lines = [item for item in history if isinstance(item, dict)] if isinstance(history, list) else []
    if sum(not item.get("empty_layer") for item in lines) == len(base.layers):
        return lines
    return [{"created_by": f"base: {base.ref.label}"} for _ in base.layers]
