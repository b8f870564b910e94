"""How an image was made, as an in-toto statement (v1) with a SLSA provenance predicate (v1), without a date or a path.

What the recipe asked for is there by the digest of its text; the model by the very bytes that its artifact's id is the
hash of, so that whoever has the image can compare the files in it with that id.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from modelpack import __version__, canonical
from modelpack.artifact import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.container.proof.sbom import Ingredients

TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:modelpack:image:v1"
BUILDER = "urn:modelpack:builder"


def statement(name: str, digest: str, predicate_type: str, predicate: Any) -> dict[str, Any]:
    """Say something about an image: an in-toto statement whose subject is the manifest's digest."""
    subject = {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
    return {"_type": STATEMENT, "subject": [subject], "predicateType": predicate_type, "predicate": predicate}


def provenance(
    made: Ingredients, *, recipe: str, asked: Mapping[str, Any], builder: str, tools: Mapping[str, str]
) -> bytes:
    """Write the statement of how an image was made.

    Args:
        made: What it was put together from.
        recipe: Text of the recipe, which is told by its digest; empty where there is none.
        asked: What the build was asked for: tag, base, platform, labels.
        builder: ``oci`` or ``docker``.
        tools: Digests of what modelpack itself put in, by name.
    """
    text = {"recipe": {"sha256": hashlib.sha256(recipe.encode()).hexdigest()}} if recipe else {}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {**text, "name": made.name, "image": dict(asked)},
        "internalParameters": {"sha256": dict(tools)},
        "resolvedDependencies": _dependencies(made),
    }
    details = {"builder": {"id": f"{BUILDER}:{builder}", "version": {"modelpack": __version__}}}
    predicate = {"buildDefinition": definition, "runDetails": details}
    return canonical.encode(statement(made.tag, made.digest, PREDICATE, predicate))


def _dependencies(made: Ingredients) -> list[dict[str, Any]]:
    name, digest = made.base
    identity = base64.b64encode(made.model.manifest.identity).decode()
    ancestors = [item.id for item in made.past[1:] if item.kind is not Kind.REPORT]
    return [
        {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}},
        *(
            {"name": item.name, "uri": f"pkg:pypi/{item.name}@{item.version}", "digest": {"sha256": wheel}}
            for item, wheel in sorted(made.wheels.items())
        ),
        {"name": "model", "digest": {"sha256": made.model.id}, "content": identity},
        *({"name": "ancestor", "digest": {"sha256": identity}} for identity in ancestors),
    ]


def model_files(dependencies: Sequence[Any]) -> tuple[str, dict[str, str]]:
    """Give the id of the model that a provenance names, and the hashes of its files by name.

    Raises:
        ValueError: When it names none, or the bytes have another hash.
    """
    found = [item for item in dependencies if isinstance(item, dict) and item.get("name") == "model"]
    if len(found) != 1:
        raise ValueError(f"it names {len(found)} models")
    identity, data = str(found[0]["digest"]["sha256"]), base64.b64decode(found[0]["content"], validate=True)
    if hashlib.sha256(data).hexdigest() != identity:
        raise ValueError("the model's description is not what its id is the hash of")
    return identity, {str(item["name"]): str(item["sha256"]) for item in json.loads(data)["files"]}
