"""Base images: opened wherever they lie, checked, and passed through without being unpacked to disk."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container import layout
from modelpack.container.tarball import Hashing, members
from modelpack.container.tree import ADVICE, PATH, Python, Tree, python
from modelpack.errors import MissingError, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelpack.container.blob import Blob
    from modelpack.container.layout import Raw
    from modelpack.container.reference import BaseRef


def host_platform() -> str:
    """Give this machine's platform: ``linux/arm64`` on 64-bit ARM, ``linux/amd64`` elsewhere."""
    return "linux/arm64" if platform.machine().lower() in ("aarch64", "arm64") else "linux/amd64"


@dataclass(frozen=True)
class BaseLayer:
    """One layer of a base: where its bytes are, ``sha256:`` of the tar inside, and that tar's size in bytes."""

    blob: Blob
    diff_id: str
    unpacked: int


@dataclass(frozen=True)
class Base:
    """A base image that was read and checked.

    Attributes:
        ref: What the user asked for.
        digest: What it is known by: ``sha256:`` of its manifest, or of the file that stands for one.
        config: Its configuration's JSON object.
        layers: Its layers, lowest first.
        python: The interpreter that the server will run on.
    """

    ref: BaseRef
    digest: str
    config: Mapping[str, Any]
    layers: tuple[BaseLayer, ...]
    python: Python

    @property
    def settings(self) -> Mapping[str, Any]:
        """The part of its configuration that containers inherit: environment, labels, ports."""
        return layout.mapping(self.config.get("config"))

    @property
    def env(self) -> dict[str, str]:
        """Its environment, by name."""
        return environment(self.settings)

    @property
    def platform(self) -> str:
        """Its ``os/architecture``."""
        return f"linux/{self.python.architecture}"


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Read an image's environment, ``NAME=value`` items in order."""
    items = [item for item in settings.get("Env") or () if isinstance(item, str)]
    return {name: value for name, _, value in (item.partition("=") for item in items)}


def open_base(ref: BaseRef, platform: str, *, cache: Path, scratch: Path, offline: bool = False) -> Base:
    """Open a base image and check that the server can run on it.

    Args:
        ref: Where it comes from.
        platform: ``linux/amd64`` or ``linux/arm64``.
        cache: Directory for what is downloaded.
        scratch: Directory for an engine's export; the base reads from it while it is used.
        offline: Take registry images from the cache only.

    Raises:
        MissingError: When a registry or engine does not answer.
        StageError: When the image is damaged, for another platform, or has no usable Python.
        UsageError: When the reference fits no or several images.
    """
    return inspect(ref, _find(ref, platform, cache, scratch, offline), platform)


def _find(ref: BaseRef, platform: str, cache: Path, scratch: Path, offline: bool) -> Raw:
    if ref.scheme == "docker":
        from modelpack.container import registry

        return registry.pull(ref.name, platform, cache, offline=offline)
    if ref.scheme == "docker-daemon":
        from modelpack.container import engine

        archive = scratch / "base.tar"
        engine.export(ref.name, archive)
        return layout.docker_archive(archive, platform, "")
    assert ref.path is not None, "the other schemes name files"
    try:
        if ref.scheme == "rootfs":
            return layout.rootfs(ref.path, platform)
        if ref.scheme == "docker-archive":
            return layout.docker_archive(ref.path, platform, ref.tag)
        return layout.oci(ref.path, platform, ref.tag, archive=ref.scheme == "oci-archive")
    except OSError as error:
        raise MissingError(f"cannot be read: {error.strerror}", where=str(ref.path)) from error


def inspect(ref: BaseRef, raw: Raw, platform: str) -> Base:
    """Read every layer of an image once: check its digests, and find the Python in it.

    Raises:
        StageError: When a digest differs, the platform is another, or the Python is not usable.
    """
    where = str(ref)
    _check_settings(raw.config.get("config"), where)
    promised = layout.mapping(raw.config.get("rootfs")).get("diff_ids")
    if promised is not None and (not isinstance(promised, list) or len(promised) != len(raw.layers)):
        raise StageError("its configuration and its manifest count the layers differently", where=where)
    tree, layers = Tree(), []
    for number, blob in enumerate(raw.layers):
        layer = _read_layer(blob, tree, f"{where}: layer {number + 1}")
        if promised is not None and layer.diff_id != promised[number]:
            raise StageError(f"layer {number + 1} is not the one its configuration names", where=where)
        layers.append(layer)
    if ref.scheme != "rootfs":
        layout.check_platform(raw.config, platform, where)
    search = environment(layout.mapping(raw.config.get("config"))).get("PATH", PATH)
    found = python(tree, search, where)
    if f"linux/{found.architecture}" != platform:
        raise StageError(f"its Python is built for {found.architecture}, not {platform}", where=where)
    return Base(ref, raw.digest, raw.config, tuple(layers), found)


def _check_settings(settings: object, where: str) -> None:
    """Refuse a configuration whose parts are not what they should be, or that makes a build run something.

    Raises:
        StageError: Naming the part.
    """
    values = layout.mapping(settings)
    shapes: dict[str, type] = {"Env": list, "Labels": dict, "ExposedPorts": dict, "Volumes": dict, "OnBuild": list}
    for name, shape in shapes.items():
        if not isinstance(values.get(name), shape | None):
            raise StageError(f"its configuration is malformed: {name}", where=where)
    if values.get("OnBuild"):
        raise StageError("the base runs commands in whatever is built on it (ONBUILD)", where=where, then=ADVICE)


def _read_layer(blob: Blob, tree: Tree, where: str) -> BaseLayer:
    known = blob if blob.digest else blob.known()
    for _ in known.chunks() if blob.digest else ():
        pass  # reading to the end is what compares the digest
    with blob.path.open("rb") as stream:
        reader = Hashing(known.unpacked(stream), where)
        tree.add(members(reader, where, heads="python3."))
    return BaseLayer(known, reader.digest, reader.count)
