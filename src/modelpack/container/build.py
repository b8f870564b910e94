"""From an ONNX artifact to an image: the order of work that every builder shares."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container import archive, bytecode, dockerfile, engine, layout, oci, plan, wheels
from modelpack.container.archive import ARCHIVE, RECEIPT
from modelpack.container.base import Base, open_base
from modelpack.container.card import card
from modelpack.container.proof.account import account
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelpack.artifact import Artifact
    from modelpack.container.archive import Attached
    from modelpack.container.order import Order
    from modelpack.container.wheels import Wheel


def check(order: Order, scratch: Path) -> None:
    """Fetch and check everything that a build needs from outside, so that it cannot fail later for want of it.

    Raises:
        MissingError: When an engine, a registry or a download is missing.
        StageError: When a base is not usable.
        UsageError: When a base or the template is wrong.
    """
    if order.builder == "docker":
        engine.ready()
        path = order.template or dockerfile.template()
        dockerfile.check(path.read_text("utf-8"), str(path))
    with _files():
        cache = wheels.cache_directory()
        for platform in order.platforms.names:
            base = _base(order, platform, cache, scratch)
            wheels.resolve(_target(base), cache, order.kinds, offline=order.offline)


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


def _base(order: Order, platform: str, cache: Path, scratch: Path) -> Base:
    return open_base(order.bases.of(platform), platform, cache=cache, scratch=scratch, offline=order.offline)


def _target(base: Base) -> wheels.Target:
    return wheels.Target(base.python.minor, base.python.architecture)


def make(
    artifact: Artifact,
    order: Order,
    facts: Mapping[str, Any],
    *,
    past: Sequence[Artifact] = (),
    out: Path,
    scratch: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Build an image for every platform, and write them into one archive with what proves them.

    Args:
        artifact: An ONNX artifact.
        order: What to build.
        facts: More lines for the model card.
        past: Where the artifact comes from, itself first, and reports on it.
        out: Directory for `ARCHIVE` and `RECEIPT`.
        scratch: Directory for intermediate files.
        tell: Receives what deserves the user's attention.

    Returns:
        The image's id, digest, size, layers and base as JSON; with several platforms `images` has them of each.

    Raises:
        MissingError: When an engine, a registry or a download is missing.
        StageError: When a base is not usable, the artifact is damaged or not ONNX, or the engine fails.
    """
    if problems := artifact.verify():
        raise StageError(f"the artifact is damaged: {problems[0]}", then="modelpack verify")
    told: list[str] = []
    with _files():
        images: list[oci.Image] = []
        attached: list[Attached] = []
        for platform in order.platforms.names:
            apart = scratch / platform.replace("/", "-")
            apart.mkdir(parents=True, exist_ok=True)
            base = _base(order, platform, wheels.cache_directory(), apart)
            files = _wheels(artifact, order, base)
            image = _image(artifact, order, facts, base, files, scratch=apart, tell=told.append)
            images.append(image)
            attached += account(image, order, base, files, past=past or [artifact], facts=facts)
        summary = archive.write(images, out / ARCHIVE, attached).summary()
        receipt = {key: summary[key] for key in ("id", "tag", "platform")}
        (out / RECEIPT).write_bytes(canonical.encode({"schema": 1, "builder": order.builder, **receipt}))
    for text in dict.fromkeys(told):  # what is true of every platform is said once
        tell(text)
    return summary


def _wheels(artifact: Artifact, order: Order, base: Base) -> dict[Wheel, Path]:
    kinds = plan.kinds(artifact) | order.kinds
    return wheels.resolve(_target(base), wheels.cache_directory(), kinds, offline=order.offline)


def _image(
    artifact: Artifact,
    order: Order,
    facts: Mapping[str, Any],
    base: Base,
    files: Mapping[Wheel, Path],
    *,
    scratch: Path,
    tell: Callable[[str], None],
) -> oci.Image:
    cache = wheels.cache_directory()
    kinds = plan.kinds(artifact)
    for name in sorted(wheel.name for wheel in files if wheels.OPTIONAL.get(wheel.name, frozenset()) & kinds):
        _compare(name, tell)
    program = bytecode.interpreter(base.python.minor)
    if program is None:
        tell(
            f"no python3.{base.python.minor} on this machine compiles for the image, which will start a second slower: "
            f"install python3.{base.python.minor} here, or use a base with this machine's version"
        )
    title = plan.Title(order.name, order.tag.rpartition(":")[2], artifact.id, order.epoch, order.labels)
    described = card(artifact, title.name, title.version, facts)
    contents = plan.contents(
        artifact, described, title, base=base, wheels=files, program=program, grpc=order.grpc, device=order.device
    )
    if order.builder == "oci":
        return oci.image(base, contents, order.tag, scratch, cache)
    return _by_engine(order, base, contents, scratch, cache)


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


def _by_engine(order: Order, base: Base, contents: plan.ImageContents, scratch: Path, cache: Path) -> oci.Image:
    """Build with the engine and bring the image home, so that it is there when the engine has lost it."""
    name = base.ref.name if base.ref.scheme == "docker-daemon" else _load_base(base, scratch, cache)
    identity = dockerfile.build(contents, name, order.tag, order.template or dockerfile.template(), scratch)
    engine.export(identity, scratch / "built.tar")
    raw = layout.docker_archive(scratch / "built.tar", base.platform, "")
    above = len(raw.layers) - len(base.layers)
    ours = [layer.name for layer in contents.layers]
    names = ["base"] * len(base.layers) + (ours if above == len(ours) else ["step"] * above)
    return oci.repacked(raw, names, order.tag, base, scratch=scratch, cache=cache)


def _load_base(base: Base, scratch: Path, cache: Path) -> str:
    """Give the engine a base under a name of its own; it is loaded only when it is not there."""
    tag = f"modelpack-base:{canonical.digest([layer.diff_id for layer in base.layers])[:16]}"
    if not engine.present(tag):
        path = scratch / "base-image.tar"
        archive.write([oci.base_image(base, tag, scratch, cache)], path)
        engine.load(path)
    return tag
