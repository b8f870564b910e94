"""The model card inside an image: what the model is, for people and for the server's ``/``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.artifact import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.artifact import Artifact


def card(artifact: Artifact, name: str, version: str, facts: Mapping[str, Any]) -> bytes:
    """Write the card as canonical JSON.

    It holds only what is part of the model's identity, so that it has the same bytes whenever the model has.

    Args:
        artifact: The model.
        name: What it is called.
        version: Its version, as in the image's tag.
        facts: What is known about the graph: precision, parameters, operator set.
    """
    main = MODEL_FILE[artifact.kind]
    sizes = {item.name: item.size for item in artifact.manifest.files if item.name.startswith(main)}
    return canonical.encode(
        {
            "schema": 1,
            "name": name,
            "version": version,
            "artifact": artifact.id,
            "format": str(artifact.kind),
            "size": sum(sizes.values()),
            "signature": artifact.read_json("signature.json"),
            **facts,
        }
    )
