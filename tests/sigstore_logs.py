"""A log of signatures as Rekor keeps it, versions 1 and 2, and a clock that signs the time (RFC 3161), by openssl."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from modelpack import canonical
from signing import openssl

_CLOCK = """\
[clock]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
ess_cert_id_alg = sha256
"""


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def public(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Log:
    """A log; ``trouble`` says what it does wrong: ``stranger`` or ``late``."""

    def __init__(self):
        self.key, self.trouble = ec.generate_private_key(ec.SECP256R1()), ""
        self.identity = hashlib.sha256(public(self.key)).digest()
        self.entries = [b"the first entry", b"the second entry"]  # so that proofs of inclusion have something in them

    def record(self, proposed):
        """Take an envelope, and answer as Rekor 1 does."""
        content = proposed["spec"]["proposedContent"]
        envelope, (verifier,) = json.loads(content["envelope"]), content["verifiers"]
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        (signature,) = (item["sig"] for item in envelope["signatures"])
        message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        signer = x509.load_pem_x509_certificate(base64.b64decode(verifier)).public_key()
        signer.verify(base64.b64decode(signature), message, ec.ECDSA(hashes.SHA256()))
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": signature, "verifier": verifier}],
        }
        index, body = self._append({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        at = int(dt.datetime.now(dt.UTC).timestamp()) + 3600 * (self.trouble == "late")
        plain = {"body": body, "integratedTime": at, "logID": self.identity.hex(), "logIndex": index}
        proof = {
            "checkpoint": self._checkpoint(),
            "hashes": [item.hex() for item in path(index, self.entries)],
            "logIndex": index,
            "rootHash": tree(self.entries).hex(),
            "treeSize": len(self.entries),
        }
        promise = text(self._sign(canonical.encode(plain)))
        return {"0123": {**plain, "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}}

    def record_hash(self, proposed):
        """Take a hash, and answer as Rekor 2 does: no time is in it."""
        asked = proposed["hashedRekordRequestV002"]
        digest, signature = asked["digest"], asked["signature"]
        raw = base64.b64decode(signature["verifier"]["x509Certificate"]["rawBytes"])
        made = base64.b64decode(signature["content"])
        signer = x509.load_der_x509_certificate(raw).public_key()
        signer.verify(made, base64.b64decode(digest), ec.ECDSA(Prehashed(hashes.SHA256())))
        spec = {"hashedRekordV002": {"data": {"algorithm": "SHA2_256", "digest": digest}, "signature": signature}}
        index, body = self._append({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": spec})
        proof = {
            "logIndex": str(index),
            "rootHash": text(tree(self.entries)),
            "treeSize": str(len(self.entries)),
            "hashes": [text(item) for item in path(index, self.entries)],
            "checkpoint": {"envelope": self._checkpoint()},
        }
        return {
            "logIndex": str(index),
            "logId": {"keyId": text(self.identity)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "inclusionProof": proof,
            "canonicalizedBody": body,
        }

    def _append(self, entry):
        self.entries.append(canonical.encode(entry))
        return len(self.entries) - 1, text(self.entries[-1])

    def _checkpoint(self):
        note = f"a small log - 1\n{len(self.entries)}\n{text(tree(self.entries))}\n"
        return f"{note}\n\u2014 small {text(self.identity[:4] + self._sign(note.encode()))}\n"

    def _sign(self, data):
        key = ec.generate_private_key(ec.SECP256R1()) if self.trouble == "stranger" else self.key
        return key.sign(data, ec.ECDSA(hashes.SHA256()))


def leaf(data):
    return hashlib.sha256(b"\0" + data).digest()


def half(count):
    """Give the largest power of two below a number."""
    return 1 << (count - 1).bit_length() - 1


def tree(entries):
    """Hash a log (RFC 6962, section 2.1)."""
    if len(entries) == 1:
        return leaf(entries[0])
    split = half(len(entries))
    return hashlib.sha256(b"\1" + tree(entries[:split]) + tree(entries[split:])).digest()


def path(index, entries):
    """Prove that an entry is in a log (RFC 6962, section 2.1.1)."""
    if len(entries) == 1:
        return []
    split = half(len(entries))
    if index < split:
        return [*path(index, entries[:split]), tree(entries[split:])]
    return [*path(index - split, entries[split:]), tree(entries[:split])]


def stamp(query: bytes, certificate, key) -> bytes:
    """Sign what time it is."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clock.cnf").write_text(_CLOCK.format(folder=folder))
        (folder / "query").write_bytes(query)
        (folder / "clock.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "clock.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        openssl(
            "ts", "-reply", "-config", folder / "clock.cnf", "-section", "clock", "-queryfile", folder / "query",
            "-signer", folder / "clock.pem", "-inkey", folder / "clock.key", "-out", folder / "reply",
        )  # fmt: skip
        return (folder / "reply").read_bytes()
