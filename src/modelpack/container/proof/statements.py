"""What is said about an image, compared with the image: its provenance, its contents, its model, its signature.

A check gives what it compared, and raises what is wrong.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from modelpack.container.layout import mapping
from modelpack.container.proof import provenance as stated
from modelpack.container.proof import referrers, sbom
from modelpack.container.proof import signature as signing
from modelpack.errors import StageError, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelpack.container.oci import Image
    from modelpack.container.proof.found import Found
    from modelpack.container.proof.inside import Inside
    from modelpack.container.proof.keys import Verifier

UNSTATED = "copy the image with what is attached to it (oras cp -r), or build it again: `modelpack build` writes both"
UNSIGNED = "sign it: modelpack build --sign modelpack.key --output image.tar, or --push REF"
_NO_KEY = "name the public key with --key"
_REVISION = "org.opencontainers.image.revision"


class NotCheckedError(StageError):
    """A check that had nothing to compare with."""


def _documents(found: Found, digest: str, kind: str) -> Iterator[bytes]:
    """Give the parts of a media type in what is attached to a digest."""
    for item in found.archive.attached:
        if referrers.about(item) in ("", digest):
            yield from (part.data for part in referrers.parts(item) if part.media == kind)


def _list(value: object) -> list[dict[str, Any]]:
    """Take a JSON value that should be a list of objects; what is no object counts as an empty one."""
    return [mapping(item) for item in value] if isinstance(value, list) else []


def _read(data: bytes) -> dict[str, Any]:
    try:
        return mapping(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _statement(found: Found, image: Image) -> dict[str, Any]:
    """Read the provenance of an image.

    Raises:
        StageError: When it has none, or one about another image.
    """
    read = [_read(data) for data in _documents(found, image.digest, stated.TYPE)]
    mine = [item for item in read if item.get("predicateType") == stated.PREDICATE]
    if not mine:
        raise StageError("nothing says how it was made")
    if len(mine) > 1:
        raise StageError(f"{len(mine)} documents say how it was made")
    _same_subject(mine[0], image.digest)
    return mine[0]


def _same_subject(statement: Mapping[str, Any], digest: str) -> None:
    named = [mapping(item.get("digest")).get("sha256") for item in _list(statement.get("subject"))]
    if named != [digest.removeprefix("sha256:")]:
        raise StageError("it is about another image")


def provenance(found: Found, image: Image, key: Verifier | None) -> str:
    """Compare the provenance's subject with the image, and its signature with the key."""
    statement = _statement(found, image)
    return f"about this very image{_attested(found, image, key, statement)}"


def _attested(found: Found, image: Image, key: Verifier | None, statement: Mapping[str, Any]) -> str:
    """Look for a statement among those that the key signed."""
    if key is None:
        return ""
    for data in _documents(found, image.digest, signing.ENVELOPE):
        said, trusted = signing.opened(data, key)
        if trusted and {**said, "subject": 0} == {**statement, "subject": 0}:
            _same_subject(said, image.digest)
            return ", signed with this key"
    raise StageError("nobody signed it with this key", then=UNSIGNED)


def model(found: Found, image: Image, inside: Inside) -> str:
    """Compare the model's files in the image with the hashes that its artifact's id is made of."""
    definition = mapping(mapping(_statement(found, image).get("predicate")).get("buildDefinition"))
    try:
        identity, files = stated.model_files(_list(definition.get("resolvedDependencies")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StageError(f"the provenance describes no model: {error}") from error
    labels = mapping(mapping(json.loads(image.config).get("config")).get("Labels"))
    if [labels.get(_REVISION), inside.card.get("artifact")] != [identity] * 2:
        raise StageError("the label, the model card and the provenance name different models")
    strange = sorted(name for name, digest in inside.model.items() if files.get(name) != digest)
    if strange:
        raise StageError(f"not the model's files: {listed(strange)}")
    parts = ("model.onnx", "interface.", "signature.json")
    lost = sorted(name for name in files if name.startswith(parts) and name not in inside.model)
    if lost:
        raise StageError(f"missing of the model: {listed(lost)}")
    return f"{len(inside.model)} files are those of artifact {identity[:12]}"


def contents(found: Found, image: Image, inside: Inside, key: Verifier | None) -> str:
    """Compare the list of ingredients with what lies in the layers."""
    read = [_read(data) for data in _documents(found, image.digest, sbom.TYPE)]
    if len(read) != 1:
        raise StageError("nothing lists what is in it" if not read else f"{len(read)} documents list what is in it")
    bom = read[0]
    parts = _list(bom.get("components"))
    about = mapping(mapping(bom.get("metadata")).get("component"))
    digests = [item.get("content") for item in _list(about.get("hashes"))]
    if digests != [image.digest.removeprefix("sha256:")]:
        raise StageError("the list is about another image")
    models = [item.get("version") for item in parts if item.get("type") == "machine-learning-model"]
    if models != [inside.card.get("artifact")]:
        raise StageError("the list names another model")
    for kind, there in (("pypi", inside.distributions), ("deb", inside.packages)):
        _same_packages(kind, parts, {(item.name, item.version) for item in there})
    predicate = stated.statement("", image.digest, sbom.PREDICATE, bom)
    signed = _attested(found, image, key, predicate)
    return f"{len(inside.distributions)} Python and {len(inside.packages)} system packages, as listed{signed}"


def _same_packages(kind: str, parts: list[dict[str, Any]], there: set[tuple[str, str]]) -> None:
    told = {
        (str(item.get("name")), str(item.get("version")))
        for item in parts
        if str(item.get("purl", "")).startswith(f"pkg:{kind}/")
    }
    if told != there:
        names = sorted(f"{name} {version}" for name, version in told ^ there)
        raise StageError(f"the list and the image differ in: {listed(names)}")


def signature(found: Found, key: Verifier | None) -> str:
    """Look for a signature of the key over the image's digest."""
    signatures = list(_signatures(found))
    if key is None:
        text = "it is signed, and nobody asked by whom" if signatures else "it has no signature"
        raise NotCheckedError(text, then=_NO_KEY if signatures else UNSIGNED)
    if not signatures:
        raise StageError("it has no signature")
    for payload, made in signatures:
        if signing.accepts(key, payload, made) and signing.signed_digest(payload) == found.digest:
            return "signed with this key"
    raise StageError("no signature is this key's", then="compare the key, or ask who built it for theirs")


def _signatures(found: Found) -> Iterator[tuple[bytes, str]]:
    for item in found.archive.attached:
        if referrers.about(item) in ("", found.digest):
            for part in referrers.parts(item):
                if part.media == signing.SIMPLE:
                    yield part.data, part.annotations.get(signing.ANNOTATION, "")
