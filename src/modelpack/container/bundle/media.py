"""What layers of a model artifact are called: CNCF ModelPack (model-spec 0.0.7) and KitOps ModelKit 1."""

from __future__ import annotations

import re
from dataclasses import dataclass

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
CONFIGS = (CONFIG, "application/vnd.cnai.model.config.v1+json")
"""The specification's configuration, and what it was called before it became the CNCF's."""
KIT = "application/vnd.kitops.modelkit.config.v1+json"
WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENTS = "application/vnd.cncf.model.doc.v1.raw"

PATH = "org.cncf.model.filepath"
PATHS = (PATH, "org.cnai.model.filepath", "org.opencontainers.image.title")
"""Annotations that name a layer's file, best first."""
METADATA = "org.cncf.model.file.metadata+json"
UNTESTED = "org.cncf.model.file.mediatype.untested"

_ROLES = "weight|weight[.]config|doc|code|dataset|model|modelpart|docs"
_LAYER = re.compile(
    rf"application/vnd[.](?:cncf[.]model|cnai[.]model|kitops[.]modelkit)[.](?P<role>{_ROLES})[.]v1"
    r"[.](?P<form>raw|tar)(?:[+](?P<packed>gzip|zstd))?"
)


@dataclass(frozen=True)
class Kind:
    """What a layer is: its role, and whether it is one file or a tar of several."""

    role: str
    is_tar: bool


def kind(media_type: object) -> Kind | None:
    """Read a layer's media type; None for one of another specification.

    >>> kind("application/vnd.cncf.model.weight.config.v1.tar+gzip")
    Kind(role='weight.config', is_tar=True)
    >>> kind("application/vnd.oci.image.layer.v1.tar+gzip") is None
    True
    """
    found = _LAYER.fullmatch(media_type) if isinstance(media_type, str) else None
    if found is None or (found["form"] == "raw" and found["packed"]):
        return None
    return Kind(found["role"], found["form"] == "tar")
