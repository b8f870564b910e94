"""What is signed, and how it is written down: images in the form of cosign, statements in DSSE envelopes.

An image's signature is over the "simple signing" document of containers/image (containers-signature(5)), which cosign,
podman, CRI-O and skopeo check. A statement's is over its pre-authentication encoding (DSSE 1.0, "Protocol").
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.container.layout import mapping

if TYPE_CHECKING:
    from modelpack.container.proof.keys import Signer, Verifier

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
STATEMENT = "application/vnd.in-toto+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNED = "https://sigstore.dev/cosign/sign/v1"
"""Predicate of a statement that says no more than which image is meant: cosign's signature since version 3."""
ANNOTATION = "dev.cosignproject.cosign/signature"
_KIND = "cosign container image signature"


def simple(repository: str, digest: str) -> bytes:
    """Write the document that stands for an image when it is signed."""
    image = {"docker-manifest-digest": digest}
    critical = {"identity": {"docker-reference": repository}, "image": image, "type": _KIND}
    return canonical.encode({"critical": critical, "optional": None})


def signed_digest(payload: bytes) -> str:
    """Tell which image a document stands for; empty when it is no such document."""
    critical = mapping(parsed(payload).get("critical"))
    digest = mapping(critical.get("image")).get("docker-manifest-digest")
    return digest if critical.get("type") == _KIND and isinstance(digest, str) else ""


def encoded(kind: str, payload: bytes) -> bytes:
    """Write what is signed in place of a payload, so that its type cannot be taken for another.

    >>> encoded("text/plain", b"hello")
    b'DSSEv1 10 text/plain 5 hello'
    """
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def envelope(payload: bytes, signer: Signer) -> bytes:
    """Sign a statement, and put it and the signature into one document."""
    signature = base64.b64encode(signer.sign(encoded(STATEMENT, payload))).decode()
    return canonical.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": STATEMENT,
            "signatures": [{"keyid": "", "sig": signature}],
        }
    )


def opened(data: bytes, verifier: Verifier) -> dict[str, Any] | None:
    """Read the statement in an envelope; None where the key did not sign it."""
    body = parsed(data)
    payload, listed = _bytes(body.get("payload")), body.get("signatures")
    signatures = [_bytes(mapping(item).get("sig")) for item in listed] if isinstance(listed, list) else []
    message = encoded(STATEMENT, payload)
    if body.get("payloadType") != STATEMENT or not any(verifier.accepts(item, message) for item in signatures):
        return None
    return parsed(payload)


def accepts(verifier: Verifier, payload: bytes, signature: str) -> bool:
    """Tell whether a signature, as an annotation has it, is this key's over a document."""
    return verifier.accepts(_bytes(signature), payload)


def parsed(data: bytes) -> dict[str, Any]:
    """Read a JSON object; empty for anything else."""
    try:
        return mapping(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _bytes(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""
