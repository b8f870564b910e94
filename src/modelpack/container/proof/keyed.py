"""Signed with a key: the form of cosign up to version 2, which versions after it read as well.

An image has a signature over its "simple signing" document; what was said about it, DSSE envelopes in one manifest.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container.oci import sha256
from modelpack.container.proof import provenance, referrers, signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.container.archive import Attached
    from modelpack.container.proof.keys import Signer, Verifier
    from modelpack.container.proof.referrers import Part, Subject


@dataclass(frozen=True)
class KeySeal:
    """Signs with a private key."""

    signer: Signer
    label = "signed"

    def image(self, subject: Subject, repository: str) -> Attached:
        """Sign an image."""
        payload = signature.simple(repository, subject.digest)
        made = base64.b64encode(self.signer.sign(payload)).decode()
        part = referrers.Part(signature.SIMPLE, payload, {signature.ANNOTATION: made})
        return referrers.attach(referrers.SIGNATURE, subject, [part], referrers.configuration([sha256(payload)]))

    def statements(self, subject: Subject, texts: Mapping[str, bytes]) -> list[Attached]:
        """Sign statements about an image; predicate type → statement."""
        parts = [
            referrers.Part(
                signature.ENVELOPE,
                signature.envelope(text, self.signer),
                {signature.ANNOTATION: "", referrers.PREDICATE: kind},
            )
            for kind, text in sorted(texts.items())
        ]
        config = referrers.configuration([sha256(part.data) for part in parts])
        return [referrers.attach(referrers.ATTESTATION, subject, parts, config)]


@dataclass(frozen=True)
class KeyTrust:
    """Trusts whoever has the private key to a public one."""

    verifier: Verifier
    label = "this key"

    def said(self, part: Part) -> dict[str, Any] | None:
        """Give the statement that the key signed; None where it signed none."""
        if part.media == signature.SIMPLE:
            made = part.annotations.get(signature.ANNOTATION, "")
            if signature.accepts(self.verifier, part.data, made):
                return provenance.statement("", signature.signed_digest(part.data), signature.SIGNED, {})
        elif part.media == signature.ENVELOPE:
            return signature.opened(part.data, self.verifier)
        return None
