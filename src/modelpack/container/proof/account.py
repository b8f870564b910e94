"""What an image gets beside it when it is built: the list of what is in it, and how it was made."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.container import install
from modelpack.container.blob import Blob
from modelpack.container.oci import MANIFEST
from modelpack.container.order import ingredients
from modelpack.container.plan import timestamp
from modelpack.container.proof import provenance, referrers, sbom
from modelpack.container.proof.inside import Distribution, distribution, look
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.artifact import Artifact
    from modelpack.container.archive import Attached
    from modelpack.container.base import Base
    from modelpack.container.oci import Image
    from modelpack.container.order import Order
    from modelpack.container.wheels import Wheel


def account(
    image: Image,
    order: Order,
    base: Base,
    wheels: Mapping[Wheel, Path],
    *,
    past: Sequence[Artifact],
    facts: Mapping[str, Any],
) -> tuple[Attached, ...]:
    """Write the documents about one image.

    Args:
        image: The finished image.
        order: What was asked for.
        base: What it stands on.
        wheels: The server's distributions, wheel → file.
        past: The model inside, what it was made from, the nearest first, and reports on it.
        facts: What is known about its graph.

    Raises:
        StageError: When a layer of the base cannot be read.
    """
    below = look(_system(image, order, base), str(base.ref))
    made = sbom.Ingredients(
        tag=order.tag,
        digest=image.digest,
        platform=image.platform,
        base=(base.ref.label, base.digest),
        system=below.system,
        packages=below.packages,
        wheels={_described(path): wheel.sha256 for wheel, path in wheels.items() if wheel.name not in install.UNUSED},
        model=past[0],
        name=order.name,
        facts=facts,
        past=past,
        created=timestamp(order.epoch) if order.epoch else "",
    )
    asked = {
        "tag": order.tag,
        "platform": image.platform,
        "base": base.ref.label,
        "labels": dict(order.labels),
        "grpc": order.grpc,
        "opentelemetry": order.opentelemetry,
        "device": order.device,
        "epoch": order.epoch,
    }
    text = str(past[0].manifest.record.get("recipe", ""))
    tools = ingredients(order.template, order.builder)
    how = provenance.provenance(made, recipe=text, asked=asked, builder=order.builder, tools=tools)
    subject = referrers.Subject(MANIFEST, image.digest, len(image.manifest))
    return referrers.plain(subject, sbom.bom(made), how)


def _system(image: Image, order: Order, base: Base) -> list[Blob]:
    """Give the layers in which a system's packages can be: a template's own steps may have added some."""
    if order.builder == "oci":
        return [layer.blob for layer in base.layers]
    return [Blob(layer.content, layer.size) for layer in image.layers if isinstance(layer.content, Path)]


def _described(path: Path) -> Distribution:
    """Read what a wheel says about itself."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
        if len(names) != 1:
            raise StageError(f"the wheel has {len(names)} descriptions of itself", where=str(path))
        return distribution(archive.read(names[0]))
