"""What image to build, in words that every builder reads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelpack import canonical
from modelpack.container import dockerfile, plan, wheels
from modelpack.container.reference import ImageName
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelpack.container.platforms import Bases, Platforms


@dataclass(frozen=True)
class Order:
    """What image to build.

    Attributes:
        name: The model's name.
        tag: ``name:tag`` for engines.
        bases: What it stands on.
        platforms: The machines it is for.
        builder: ``oci`` or ``docker``.
        epoch: Date of everything in it, seconds since 1970.
        labels: Labels added to the computed ones.
        template: Dockerfile template of the docker builder; modelpack's own when None.
        offline: Use what is in the caches only.
        grpc: Speak gRPC too.
        device: Where the model runs: ``cpu`` or ``cuda``.
        opentelemetry: Be able to send spans.
    """

    name: str
    tag: str
    bases: Bases
    platforms: Platforms
    builder: str = "oci"
    epoch: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    template: Path | None = None
    offline: bool = False
    grpc: bool = False
    device: str = "cpu"
    opentelemetry: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """What the image is for, whatever its model: words of `wheels.OPTIONAL`."""
        asked = {"grpc": self.grpc, "cuda": self.device == "cuda", "opentelemetry": self.opentelemetry}
        return frozenset(kind for kind, wanted in asked.items() if wanted)


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
