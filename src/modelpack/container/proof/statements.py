"""What is said about an image, compared with the image: its provenance, its contents, its model, its signature.

A check gives what it compared, and raises what is wrong.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

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
    from modelpack.container.proof.referrers import Part

UNSTATED = "copy the image with what is attached to it (oras cp -r), or build it again: `modelpack build` writes both"
UNSIGNED = "sign it: modelpack build --sign modelpack.key (or sigstore) --output image.tar, or --push REF"
_THEIRS = "compare that with who built the image, or ask them"
_BY_WHOM = "name the public key with --key, or the signer with --certificate-identity and --certificate-oidc-issuer"
_SIGNATURES = (signing.SIMPLE, signing.BUNDLE)
_ATTESTED = (signing.ENVELOPE, signing.BUNDLE)
_REVISION = "org.opencontainers.image.revision"


class NotCheckedError(StageError):
    """A check that had nothing to compare with."""


class Trust(Protocol):
    """Someone whose signatures count.

    Attributes:
        label: What to call them.
    """

    @property
    def label(self) -> str:
        """What to call them."""

    def said(self, part: Part) -> dict[str, Any] | None:
        """Give the statement in a part of a document; None where they signed none.

        Raises:
            StageError: When there is one that is not to be trusted, with the reason.
        """


def _parts(found: Found, digest: str) -> Iterator[Part]:
    """Give the parts of all that is attached to a digest."""
    for item in found.archive.attached:
        if referrers.about(item) in ("", digest):
            yield from referrers.parts(item)


def _said(found: Found, digest: str, trust: Trust) -> tuple[list[dict[str, Any]], str]:
    """Give what someone said about a digest, and why other statements do not count."""
    said: list[dict[str, Any]] = []
    refused: dict[str, None] = {}
    for part in _parts(found, digest):
        try:
            statement = trust.said(part)
        except StageError as error:
            refused[error.what] = None
            continue
        said += [] if statement is None else [statement]
    return said, f": {listed(refused)}" if refused else ""


def _list(value: object) -> list[dict[str, Any]]:
    """Take a JSON value that should be a list of objects; what is no object counts as an empty one."""
    return [mapping(item) for item in value] if isinstance(value, list) else []


def _statement(found: Found, image: Image) -> dict[str, Any]:
    """Read the provenance of an image.

    Raises:
        StageError: When it has none, or one about another image.
    """
    read = [signing.parsed(part.data) for part in _parts(found, image.digest) if part.media == stated.TYPE]
    mine = [item for item in read if item.get("predicateType") == stated.PREDICATE]
    if not mine:
        raise StageError("nothing says how it was made")
    if len(mine) > 1:
        raise StageError(f"{len(mine)} documents say how it was made")
    _same_subject(mine[0], image.digest)
    return mine[0]


def _same_subject(statement: Mapping[str, Any], digest: str) -> None:
    if _subjects(statement) != [digest.removeprefix("sha256:")]:
        raise StageError("it is about another image")


def _subjects(statement: Mapping[str, Any]) -> list[Any]:
    return [mapping(item.get("digest")).get("sha256") for item in _list(statement.get("subject"))]


def provenance(found: Found, image: Image, trust: Trust | None) -> str:
    """Compare the provenance's subject with the image, and who signed it with whom to trust."""
    statement = _statement(found, image)
    return f"about this very image{_attested(found, image, trust, statement)}"


def _attested(found: Found, image: Image, trust: Trust | None, statement: Mapping[str, Any]) -> str:
    """Look for a statement among those that someone signed."""
    if trust is None:
        return ""
    said, refused = _said(found, image.digest, trust)
    for item in said:
        if {**item, "subject": 0} == {**statement, "subject": 0}:
            _same_subject(item, image.digest)
            return f", signed by {trust.label}"
    theirs = any(part.media in _ATTESTED for part in _parts(found, image.digest))
    raise StageError(f"it is not signed by {trust.label}{refused}", then=_THEIRS if theirs else UNSIGNED)


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


def contents(found: Found, image: Image, inside: Inside, trust: Trust | None) -> str:
    """Compare the list of ingredients with what lies in the layers."""
    read = [signing.parsed(part.data) for part in _parts(found, image.digest) if part.media == sbom.TYPE]
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
    signed = _attested(found, image, trust, predicate)
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


def signature(found: Found, trust: Trust | None) -> str:
    """Look for a signature over the image's digest that counts."""
    signed = any(part.media in _SIGNATURES for part in _parts(found, found.digest))
    if trust is None:
        text = "it is signed, and nobody asked by whom" if signed else "it has no signature"
        raise NotCheckedError(text, then=_BY_WHOM if signed else UNSIGNED)
    if not signed:
        raise StageError("it has no signature")
    said, refused = _said(found, found.digest, trust)
    for item in said:
        if item.get("predicateType") == signing.SIGNED and found.digest.removeprefix("sha256:") in _subjects(item):
            return f"signed by {trust.label}"
    raise StageError(f"no signature is that of {trust.label}{refused}", then=_THEIRS)
