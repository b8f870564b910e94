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

from sigstore_logs import Log, public, stamp, text

WHO, ISSUER = "anna@example.org", "https://accounts.google.com"
START = "2020-01-01T00:00:00Z"
_OIDC = "1.3.6.1.4.1.57264.1"
_TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_USAGE = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
          "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip


def usage(name):
    return x509.KeyUsage(**{other: other == name for other in _USAGE})


class Sigstore:
    """The instance: its keys, and all that it has logged.

    Attributes:
        rekor: Version of the log.
        stamps: Whether signers get signed times too.
        trouble: What it does wrong: ``refuse``, ``unlogged``.
    """

    def __init__(self, rekor=1, *, stamps=False):
        self.provider, self.authority, self.timestamps, self.clock = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(4)
        )
        self.rekor, self.stamps, self.log = rekor, stamps, Log()
        self.url, self.trouble = "", ""
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a small authority")])
        self.certificate = self._self_signed()
        self.clocks = self._clocks()

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

    def _clocks(self):
        """Certify the clock."""
        now, key = dt.datetime.now(dt.UTC).replace(microsecond=0), self.clock.public_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a small clock")])
        builder = x509.CertificateBuilder(self.name, name, key, 2, now - dt.timedelta(1), now + dt.timedelta(1))
        extensions = [
            (usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False),
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

        def authority(*chain):
            names = {"organization": "small", "commonName": "a small authority"}
            raw = [{"rawBytes": text(each.public_bytes(serialization.Encoding.DER))} for each in chain]
            return {"subject": names, "uri": self.url, "certChain": {"certificates": raw}, "validFor": {"start": START}}

        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log.key)],
            "certificateAuthorities": [authority(self.certificate)],
            "ctlogs": [log(self.timestamps)],
            "timestampAuthorities": [authority(self.clocks, self.certificate)],
        }

    @property
    def config(self):
        """What signers need: where it is, and how to trust it."""
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": START}, "operator": "small"}
        clock = {**service, "url": f"{self.url}/timestamp"}
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [],
            "rekorTlogUrls": [{**service, "majorApiVersion": self.rekor}],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [clock] if self.stamps else [],
            "tsaConfig": {"selector": "ANY"},
        }
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return {"mediaType": kind, "trustedRoot": self.root, "signingConfig": signing}

    def write(self, folder):
        """Write `root` and `config` into a folder; gives the environment of somebody who signs."""
        (folder / "root.json").write_text(json.dumps(self.root))
        (folder / "sigstore.json").write_text(json.dumps(self.config))
        return {"SIGSTORE_ID_TOKEN": self.token(), "MODELPACK_SIGSTORE_CONFIG": str(folder / "sigstore.json")}


class Handler(BaseHTTPRequestHandler):
    """Speaks as Fulcio and Rekor do, and as GitHub does to its runners."""

    def do_POST(self):
        instance, data = self.server.instance, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/timestamp":
            return self.answer(200, stamp(data, instance.clocks, instance.clock))
        body = json.loads(data)
        if self.path == "/api/v2/signingCert" and instance.trouble != "refuse":
            token = self.headers["Authorization"].removeprefix("Bearer ")
            chain = instance.certify(base64.b64decode(body["certificateSigningRequest"]), token)
            return self.answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
        if self.path == f"/api/v{instance.rekor}/log/entries":
            return self.answer(
                201, instance.log.record(body) if instance.rekor == 1 else instance.log.record_hash(body)
            )
        return self.answer(403, {"code": 7, "message": "not you"})

    def do_GET(self):
        asked = self.path.startswith("/token?") and "audience=sigstore" in self.path
        if asked and self.headers["Authorization"] == "bearer of a runner":
            self.answer(200, {"value": self.server.instance.token(workflow="https://github.com/a/b/.github/build.yml")})
        else:
            self.answer(403, {})

    def answer(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def running(rekor=1, *, stamps=False):
    """Run an instance."""
    instance = Sigstore(rekor, stamps=stamps)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.instance, instance.url = instance, f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield instance
        finally:
            server.shutdown()
            thread.join()
