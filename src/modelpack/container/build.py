"""From an ONNX artifact to an image: the order of work that every builder shares."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container import bytecode, dockerfile, engine, layout, oci, plan, registry, wheels
from modelpack.container.base import Base, open_base
from modelpack.container.card import card
from modelpack.container.reference import ImageName
from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from modelpack.artifact import Artifact
    from modelpack.container.reference import BaseRef

ARCHIVE = "image.tar"
"""Payload of an image artifact: the image itself, an OCI layout and a docker archive in one."""
RECEIPT = "image.json"
"""Payload of an image artifact: what the image is, and who built it."""


@dataclass(frozen=True)
class Order:
    """What image to build.

    Attributes:
        name: The model's name.
        tag: ``name:tag`` for engines.
        base: What it stands on.
        builder: ``oci`` or ``docker``.
        platform: ``linux/amd64`` or ``linux/arm64``.
        epoch: Date of everything in it, seconds since 1970.
        labels: Labels added to the computed ones.
        template: Dockerfile template of the docker builder; modelpack's own when None.
        offline: Use what is in the caches only.
        grpc: Speak gRPC too.
    """

    name: str
    tag: str
    base: BaseRef
    builder: str = "oci"
    platform: str = "linux/amd64"
    epoch: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    template: Path | None = None
    offline: bool = False
    grpc: bool = False


def full_tag(tag: str | None, name: str) -> str:
    """Write a tag in full; the model's name and ``latest`` where the user gave none.

    >>> full_tag(None, "Lite0 int8"), full_tag("lite0", "x"), full_tag("lite0:1.0", "x")
    ('lite0-int8:latest', 'lite0:latest', 'lite0:1.0')

    Raises:
        UsageError: When it is no image name, or carries a digest.
    """
    text = tag or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
    parsed = ImageName.parse(text)
    if parsed.digest:
        raise UsageError(f"'{text}' carries a digest, which is not yours to choose", then="write name:tag")
    return text if ":" in text.rpartition("/")[2] else f"{text}:{parsed.tag}"


def source_date() -> int:
    """Read ``SOURCE_DATE_EPOCH`` (reproducible-builds.org), 0 when it is not set.

    Raises:
        UsageError: When it is no number of seconds that a tar can hold.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "0").strip() or "0"
    if not re.fullmatch(r"\d{1,10}", text):
        raise UsageError(f"SOURCE_DATE_EPOCH is '{text}', not seconds since 1970")
    return int(text)


def ingredients(template: Path | None, builder: str) -> dict[str, str]:
    """Give the digests of what modelpack itself puts into images: server, locked wheels and template."""
    sources = {name: canonical.file_digest(path) for name, path in plan.server_files()}
    digests = {"server": canonical.digest(sources), "wheels": wheels.digest()}
    if builder == "docker":
        digests["template"] = canonical.file_digest(template or dockerfile.template())
    return digests


def check(order: Order, scratch: Path) -> None:
    """Fetch and check everything that a build needs from outside, so that it cannot fail later for want of it.

    Raises:
        MissingError: When an engine, a registry or a download is missing.
        StageError: When the base is not usable.
        UsageError: When the base or the template is wrong.
    """
    if order.builder == "docker":
        engine.ready()
        path = order.template or dockerfile.template()
        dockerfile.check(path.read_text("utf-8"), str(path))
    with _files():
        cache = wheels.cache_directory()
        base = open_base(order.base, order.platform, cache=cache, scratch=scratch, offline=order.offline)
        wheels.resolve(_target(base), cache, _asked(order), offline=order.offline)


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """Turn an operating system's refusal into an error that names the file; a full disk is the store's to explain.

    Raises:
        StageError: For what the user can correct.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"cannot read or write: {error.strerror or error}",
            where=str(error.filename or ""),
            then=f"the cache is {wheels.cache_directory()}; XDG_CACHE_HOME moves it",
        ) from error


def _target(base: Base) -> wheels.Target:
    return wheels.Target(base.python.minor, base.python.architecture)


def _asked(order: Order) -> frozenset[str]:
    """Give what an image is for, whatever its model."""
    return frozenset({"grpc"} if order.grpc else ())


def make(
    artifact: Artifact,
    order: Order,
    facts: Mapping[str, Any],
    *,
    out: Path,
    scratch: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Build an image.

    Args:
        artifact: An ONNX artifact.
        order: What to build.
        facts: More lines for the model card.
        out: Directory for `ARCHIVE` and `RECEIPT`.
        scratch: Directory for intermediate files.
        tell: Receives what deserves the user's attention.

    Returns:
        The image's id, digest, size and layers, as JSON.

    Raises:
        MissingError: When an engine, a registry or a download is missing.
        StageError: When the base is not usable, the artifact is damaged or not ONNX, or the engine fails.
    """
    if problems := artifact.verify():
        raise StageError(f"the artifact is damaged: {problems[0]}", then="modelpack verify")
    with _files():
        return _make(artifact, order, facts, out=out, scratch=scratch, tell=tell)


def _make(
    artifact: Artifact,
    order: Order,
    facts: Mapping[str, Any],
    *,
    out: Path,
    scratch: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    cache = wheels.cache_directory()
    base = open_base(order.base, order.platform, cache=cache, scratch=scratch, offline=order.offline)
    kinds = plan.kinds(artifact)
    files = wheels.resolve(_target(base), cache, kinds | _asked(order), offline=order.offline)
    for name in sorted(wheel.name for wheel in files if wheels.OPTIONAL.get(wheel.name) in kinds):
        _compare(name, tell)
    program = bytecode.interpreter(base.python.minor)
    if program is None:
        tell(
            f"no python3.{base.python.minor} on this machine compiles for the image, which will start a second slower: "
            f"install python3.{base.python.minor} here, or use a base with this machine's version"
        )
    title = plan.Title(order.name, order.tag.rpartition(":")[2], artifact.id, order.epoch, order.labels)
    described = card(artifact, title.name, title.version, facts)
    contents = plan.contents(artifact, described, title, base=base, wheels=files, program=program, grpc=order.grpc)
    summary = _build(order, base, contents, out=out, scratch=scratch, cache=cache)
    receipt = {key: summary[key] for key in ("id", "tag", "platform")}
    (out / RECEIPT).write_bytes(canonical.encode({"schema": 1, "builder": order.builder, **receipt}))
    return {**summary, "base": {"name": base.ref.label, "digest": base.digest, "python": base.python.path}}


def _compare(name: str, tell: Callable[[str], None]) -> None:
    """Say when the image prepares inputs with another version than training and calibration did here."""
    from importlib import metadata

    there, here = wheels.requirements()[name], ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        here = metadata.version(name)
    if here not in ("", there):
        tell(
            f"the image has {name} {there} and this machine {here}, by which what is prepared may differ in the last "
            f"digits: pip install {name}=={there}"
        )


def _build(
    order: Order, base: Base, contents: plan.ImageContents, *, out: Path, scratch: Path, cache: Path
) -> dict[str, Any]:
    if order.builder == "oci":
        image = oci.image(base, contents, order.tag, scratch, cache)
    else:
        image = _by_engine(order, base, contents, scratch, cache)
    oci.write(image, out / ARCHIVE)
    return image.summary()


def _by_engine(order: Order, base: Base, contents: plan.ImageContents, scratch: Path, cache: Path) -> oci.Image:
    """Build with the engine and bring the image home, so that it is there when the engine has lost it."""
    name = order.base.name if order.base.scheme == "docker-daemon" else _load_base(base, scratch, cache)
    identity = dockerfile.build(contents, name, order.tag, order.template or dockerfile.template(), scratch)
    engine.export(identity, scratch / "built.tar")
    raw = layout.docker_archive(scratch / "built.tar", order.platform, "")
    above = len(raw.layers) - len(base.layers)
    ours = [layer.name for layer in contents.layers]
    names = ["base"] * len(base.layers) + (ours if above == len(ours) else ["step"] * above)
    return oci.repacked(raw, names, order.tag, base.platform, scratch=scratch, cache=cache)


def _load_base(base: Base, scratch: Path, cache: Path) -> str:
    """Give the engine a base under a name of its own; it is loaded only when it is not there."""
    tag = f"modelpack-base:{canonical.digest([layer.diff_id for layer in base.layers])[:16]}"
    if not engine.present(tag):
        archive = scratch / "base-image.tar"
        oci.write(oci.base_image(base, tag, scratch, cache), archive)
        engine.load(archive)
    return tag


def deliver(image: Artifact, output: Path | None, push: str | None, tell: Callable[[str], None]) -> None:
    """Bring an image out of the store: into the engine that built it, a file, a registry. Again, it changes nothing.

    Args:
        image: An image artifact.
        output: File to write; None for none.
        push: Registry reference; None for none.
        tell: Receives what was done.

    Raises:
        MissingError: When a registry or engine does not answer.
        StageError: When the file cannot be written.
    """
    receipt = image.read_json(RECEIPT)
    if receipt["builder"] == "docker" and not engine.present(receipt["id"]):
        engine.load(image.file(ARCHIVE))
        tell(f"loaded {receipt['tag']} into the Docker engine again")
    if output is not None:
        _copy(image.file(ARCHIVE), output)
        tell(f"wrote {output}")
    if push is not None:
        tell(f"pushed {registry.push(image.file(ARCHIVE), push)}")


def _copy(archive: Path, output: Path) -> None:
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, draft)
        draft.replace(output)
    except OSError as error:
        raise StageError(f"cannot write: {error.strerror}", where=str(output)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
