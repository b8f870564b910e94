"""A small Sigstore on this machine: an OIDC provider, a certificate authority with its log, and a log of signatures.

Everything is checked and signed as the public instance does it; only who may have a certificate is simpler.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelpack import canonical

WHO, ISSUER = "anna@example.org", "https://accounts.google.com"
START = "2020-01-01T00:00:00Z"
_OIDC = "1.3.6.1.4.1.57264.1"
_TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_USAGE = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
          "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def public(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def usage(name):
    return x509.KeyUsage(**{other: other == name for other in _USAGE})


class Sigstore:
    """The instance: its keys, and all that it has logged.

    ``trouble`` says what it does wrong: ``refuse``, ``unlogged``, ``stranger``, ``late``.
    """

    def __init__(self):
        self.provider, self.authority, self.timestamps, self.log = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(4)
        )
        self.entries = [b"the first entry", b"the second entry"]  # so that proofs of inclusion have something in them
        self.url, self.trouble = "", ""
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a small authority")])
        self.certificate = self._self_signed()

    def _self_signed(self):
        now, key = dt.datetime.now(dt.UTC).replace(microsecond=0), self.authority.public_key()
        builder = x509.CertificateBuilder(self.name, self.name, key, 1, now - dt.timedelta(1), now + dt.timedelta(1))
        extensions = [
            (x509.BasicConstraints(True, 0), True),
            (usage("key_cert_sign"), True),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
        ]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.authority, hashes.SHA256())

    def token(self, who=WHO, seconds=600, **claims):
        """Write an identity token, as the provider does once somebody has logged in."""
        now = int(dt.datetime.now(dt.UTC).timestamp())
        known = {"iss": ISSUER, "sub": "1234", "email": who, "aud": "sigstore", "iat": now - 900, "exp": now + seconds}
        return jwt.encode({**known, **claims}, self.provider, "ES256")

    def certify(self, request, token):
        """Give a certificate for the identity in a token: [it, the authority's], PEM."""
        claims = jwt.decode(token, self.provider.public_key(), ["ES256"], audience="sigstore")
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        key, now = asked.public_key(), dt.datetime.now(dt.UTC).replace(microsecond=0)
        builder = x509.CertificateBuilder(
            self.name, x509.Name([]), key, x509.random_serial_number(), now, now + dt.timedelta(minutes=10)
        )
        issuer = claims["iss"].encode()
        extensions = [
            (usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False),
            (x509.SubjectAlternativeName([self._named(claims)]), True),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{_OIDC}.1"), issuer), False),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{_OIDC}.8"), bytes([12, len(issuer)]) + issuer), False),
        ]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        if self.trouble != "unlogged":
            logged = self._timestamp(builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes)
            builder = builder.add_extension(x509.UnrecognizedExtension(_TIMESTAMPS, logged), False)
        made = builder.sign(self.authority, hashes.SHA256())
        return [each.public_bytes(serialization.Encoding.PEM).decode() for each in (made, self.certificate)]

    @staticmethod
    def _named(claims):
        if "workflow" in claims:
            return x509.UniformResourceIdentifier(claims["workflow"])
        return x509.RFC822Name(claims["email"])

    def _timestamp(self, body):
        """Promise that a certificate will be logged (RFC 6962, section 3.2); gives the extension's value."""
        at = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
        issuer = hashlib.sha256(public(self.authority)).digest()
        entry = issuer + len(body).to_bytes(3, "big") + body
        signed = struct.pack("!BBQH", 0, 0, at, 1) + entry + struct.pack("!H", 0)
        made = self.timestamps.sign(signed, ec.ECDSA(hashes.SHA256()))
        identity = hashlib.sha256(public(self.timestamps)).digest()
        stamp = struct.pack("!B32sQHBBH", 0, identity, at, 0, 4, 3, len(made)) + made
        listed = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        assert len(listed) < 256
        return (bytes([4, len(listed)]) if len(listed) < 128 else bytes([4, 129, len(listed)])) + listed

    def record(self, proposed):
        """Put a signature into the log; gives the entry with the proof that it is there."""
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
        self.entries.append(canonical.encode({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}))
        return {"0123": self._entry(len(self.entries) - 1)}

    def _entry(self, index):
        at = int(dt.datetime.now(dt.UTC).timestamp()) + 3600 * (self.trouble == "late")
        body = text(self.entries[index])
        plain = {"body": body, "integratedTime": at, "logID": self.identity.hex(), "logIndex": index}
        root = tree(self.entries)
        note = f"a small log - 1\n{len(self.entries)}\n{text(root)}\n"
        made = self.identity[:4] + self._logged(note.encode())
        proof = {
            "checkpoint": f"{note}\n\u2014 small {text(made)}\n",
            "hashes": [item.hex() for item in path(index, self.entries)],
            "logIndex": index,
            "rootHash": root.hex(),
            "treeSize": len(self.entries),
        }
        promise = text(self._logged(canonical.encode(plain)))
        return {**plain, "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}

    @property
    def identity(self):
        return hashlib.sha256(public(self.log)).digest()

    def _logged(self, data):
        key = ec.generate_private_key(ec.SECP256R1()) if self.trouble == "stranger" else self.log
        return key.sign(data, ec.ECDSA(hashes.SHA256()))

    @property
    def root(self):
        """What others need to trust it: the form of Sigstore's trusted_root.json."""

        def log(key):
            known = {
                "rawBytes": text(public(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": START},
            }
            identity = {"keyId": text(hashlib.sha256(public(key)).digest())}
            return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": known, "logId": identity}

        chain = [{"rawBytes": text(self.certificate.public_bytes(serialization.Encoding.DER))}]
        names = {"organization": "small", "commonName": "a small authority"}
        authority = {
            "subject": names,
            "uri": self.url,
            "certChain": {"certificates": chain},
            "validFor": {"start": START},
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log)],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.timestamps)],
            "timestampAuthorities": [],
        }

    @property
    def config(self):
        """What signers need: where it is, and how to trust it."""
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": START}, "operator": "small"}
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [],
            "rekorTlogUrls": [service],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
            "tsaConfig": {"selector": "ANY"},
        }
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return {"mediaType": kind, "trustedRoot": self.root, "signingConfig": signing}

    def write(self, folder):
        """Write `root` and `config` into a folder; gives the environment of somebody who signs."""
        (folder / "root.json").write_text(json.dumps(self.root))
        (folder / "sigstore.json").write_text(json.dumps(self.config))
        return {"SIGSTORE_ID_TOKEN": self.token(), "MODELPACK_SIGSTORE_CONFIG": str(folder / "sigstore.json")}


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


class Handler(BaseHTTPRequestHandler):
    """Speaks as Fulcio and Rekor do, and as GitHub does to its runners."""

    def do_POST(self):
        instance = self.server.instance
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v2/signingCert" and instance.trouble != "refuse":
            token = self.headers["Authorization"].removeprefix("Bearer ")
            chain = instance.certify(base64.b64decode(body["certificateSigningRequest"]), token)
            self.answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
        elif self.path == "/api/v1/log/entries":
            self.answer(201, instance.record(body))
        else:
            self.answer(403, {"code": 7, "message": "not you"})

    def do_GET(self):
        asked = self.path.startswith("/token?") and "audience=sigstore" in self.path
        if asked and self.headers["Authorization"] == "bearer of a runner":
            self.answer(200, {"value": self.server.instance.token(workflow="https://github.com/a/b/.github/build.yml")})
        else:
            self.answer(403, {})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def running():
    """Run an instance."""
    instance = Sigstore()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.instance, instance.url = instance, f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield instance
        finally:
            server.shutdown()
            thread.join()
