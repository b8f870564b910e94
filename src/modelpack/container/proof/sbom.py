"""The list of what is in an image, as CycloneDX 1.6 JSON (ECMA-424): the same image and history, the same bytes.

No number in it is random, and it has a date only where the image has one. The model is a component of its own, with a
model card, and with what it was made from as its pedigree.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelpack import __version__, canonical
from modelpack.artifact import MODEL_FILE, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.artifact import Artifact
    from modelpack.container.proof.inside import Distribution, Package

TYPE = "application/vnd.cyclonedx+json"
PREDICATE = "https://cyclonedx.org/bom"
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_SYSTEMS = {"debian": "deb/debian", "ubuntu": "deb/ubuntu"}


@dataclass(frozen=True)
class Ingredients:
    """What an image was put together from.

    Attributes:
        tag: ``name:tag``.
        digest: ``sha256:`` of its manifest.
        platform: ``os/architecture``.
        base: Name and ``sha256:`` digest of the base.
        system: The base's own name, ``debian-12``; empty where it has none.
        packages: What dpkg says is installed in the base.
        wheels: Distributions with the SHA-256 of the wheel that each came from.
        model: The artifact inside.
        name: The model's name.
        facts: What is known about its graph: precision, parameters, operator set.
        past: Where it comes from, itself first, and reports on it.
        created: Date, RFC 3339; empty where the image has none.
    """

    tag: str
    digest: str
    platform: str
    base: tuple[str, str]
    system: str
    packages: Sequence[Package]
    wheels: Mapping[Distribution, str]
    model: Artifact
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    past: Sequence[Artifact] = ()
    created: str = ""


def bom(made: Ingredients) -> bytes:
    """Write the list of an image."""
    image, base, model = _image(made), _base(made), _model(made)
    wheels = [_wheel(item, digest) for item, digest in sorted(made.wheels.items())]
    packages = [_package(item, made.system) for item in sorted(made.packages)]
    needs = {
        image["bom-ref"]: [base["bom-ref"], model["bom-ref"], *(item["bom-ref"] for item in wheels)],
        base["bom-ref"]: [item["bom-ref"] for item in packages],
        **{item["bom-ref"]: [] for item in (model, *wheels, *packages)},
    }
    return canonical.encode(
        {
            "$schema": SCHEMA,
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, made.digest)}",
            "version": 1,
            "metadata": {
                **({"timestamp": made.created} if made.created else {}),
                "tools": {"components": [{"type": "application", "name": "modelpack", "version": __version__}]},
                "component": image,
            },
            "components": [base, model, *wheels, *packages],
            "dependencies": [{"ref": ref, "dependsOn": sorted(below)} for ref, below in sorted(needs.items())],
        }
    )


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]


def _image(made: Ingredients) -> dict[str, Any]:
    name, _, tag = made.tag.rpartition(":")
    short, architecture = name.rpartition("/")[2], made.platform.rpartition("/")[2]
    purl = f"pkg:oci/{short}@{quote(made.digest)}?arch={architecture}&tag={tag}"
    return {
        "type": "container",
        "bom-ref": purl,
        "name": name,
        "version": tag,
        "purl": purl,
        "hashes": _hashes(made.digest),
        "properties": [{"name": "modelpack:platform", "value": made.platform}],
    }


def _base(made: Ingredients) -> dict[str, Any]:
    name, digest = made.base
    return {
        "type": "container",
        "bom-ref": f"base:{digest}",
        "name": name,
        "hashes": _hashes(digest),
        "properties": [{"name": "modelpack:system", "value": made.system}] if made.system else [],
    }


def _wheel(item: Distribution, digest: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{item.name}@{quote(item.version)}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": item.name,
        "version": item.version,
        "purl": purl,
        "hashes": _hashes(digest),
        **({"licenses": [_licence(item.licence)]} if item.licence else {}),
    }


def _licence(text: str) -> dict[str, Any]:
    return {"expression": text} if _is_spdx(text) else {"license": {"name": text}}


def _is_spdx(text: str) -> bool:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return canonicalize_license_expression(text) == text
    except InvalidLicenseExpression:
        return False


def _package(item: Package, system: str) -> dict[str, Any]:
    name, _, _version = system.partition("-")
    kind = _SYSTEMS.get(name, f"deb/{name}" if name else "deb/debian")
    marks = {"arch": item.architecture, "distro": system}
    tail = "&".join(f"{key}={quote(value)}" for key, value in marks.items() if value)
    purl = f"pkg:{kind}/{quote(item.name)}@{quote(item.version)}" + (f"?{tail}" if tail else "")
    return {"type": "library", "bom-ref": purl, "name": item.name, "version": item.version, "purl": purl}


def _model(made: Ingredients) -> dict[str, Any]:
    main = MODEL_FILE[made.model.kind]
    files = [item for item in made.model.manifest.files if item.name.startswith(main)]
    whole = next((item for item in files if item.name == main), None)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"artifact:{made.model.id}",
        "name": made.name,
        "version": made.model.id,
        **({"hashes": _hashes(whole.sha256)} if whole else {}),
        "modelCard": _card(made),
        "pedigree": {"ancestors": [_ancestor(item) for item in made.past[1:] if item.kind is not Kind.REPORT]},
        "properties": [{"name": f"modelpack:{key}", "value": str(value)} for key, value in sorted(made.facts.items())],
        "components": [
            {"type": "file", "name": item.name, "hashes": _hashes(item.sha256)} for item in files if item is not whole
        ],
    }


def _ancestor(item: Artifact) -> dict[str, Any]:
    return {
        "type": "machine-learning-model" if item.kind.is_model else "data",
        "bom-ref": f"artifact:{item.id}",
        "name": str(item.manifest.work.get("stage", "")),
        "version": item.id,
        "properties": [
            *({"name": f"modelpack:data:{name}", "value": f"sha256:{digest}"} for name, digest in _data(item)),
            *({"name": f"modelpack:{name}", "value": str(value)} for name, value in _figures(item)),
        ],
    }


def _data(item: Artifact) -> list[tuple[str, str]]:
    return sorted(item.manifest.work.get("data", {}).items())


def _figures(item: Artifact) -> list[tuple[str, Any]]:
    """Give the figures that do not depend on the machine that measured them."""
    if "machine" in item.manifest.work:
        return []
    return [(name, value) for name, value in sorted(item.metrics.items()) if isinstance(value, (int, float))]


def _card(made: Ingredients) -> dict[str, Any]:
    """Say what the model takes and gives, what it learnt from, and how good it is on which data."""
    signature = made.model.read_json("signature.json")
    architecture = next((name for item in reversed(made.past) if (name := _factory(item))), "")
    used = {pair: None for item in reversed(made.past) for pair in _data(item)}
    reports = [item for item in made.past if item.kind is Kind.REPORT]
    return {
        "modelParameters": {
            **({"modelArchitecture": architecture} if architecture else {}),
            "inputs": [{"format": _tensor(name, spec)} for name, spec in signature["inputs"].items()],
            "outputs": [{"format": _tensor(name, spec)} for name, spec in signature["outputs"].items()],
            "datasets": [_dataset(name, digest) for name, digest in used],
        },
        "quantitativeAnalysis": {"performanceMetrics": [line for item in reports for line in _measured(item)]},
    }


def _factory(item: Artifact) -> str:
    """Name the code that built a model, where it was built here."""
    config = item.manifest.work.get("config")
    factory = config.get("factory") if isinstance(config, dict) else None
    return str(factory.get("callable", "")) if isinstance(factory, dict) else ""


def _dataset(name: str, digest: str) -> dict[str, Any]:
    content = {"properties": [{"name": "modelpack:digest", "value": digest}]}
    return {"type": "dataset", "name": name, "contents": content}


def _measured(report: Artifact) -> list[dict[str, str]]:
    names = ", ".join(name for name, _ in _data(report))
    figures = [{"type": name, "value": str(value)} for name, value in _figures(report)]
    return [{**line, "slice": names} for line in figures] if names else figures


def _tensor(name: str, spec: Mapping[str, Any]) -> str:
    """Write a tensor in one line.

    >>> _tensor("x", {"dtype": "float32", "shape": ["batch", 4]})
    'x: float32[batch, 4]'
    """
    return f"{name}: {spec['dtype']}[{', '.join(str(size) for size in spec['shape'])}]"
