"""Keys that sign and check: ECDSA on P-256 in PEM files, as openssl and cosign write them.

A private key may be encrypted; its password comes from an environment variable or is asked for, never from
the command line.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container.proof import box
from modelpack.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PASSWORD = "MODELPACK_KEY_PASSWORD"  # noqa: S105 - the variable's name
_ADVICE = "make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -out modelpack.key"
_PUBLIC = "write it: openssl pkey -in modelpack.key -pubout -out modelpack.pub"


@dataclass(frozen=True)
class Signer:
    """A private key."""

    key: EllipticCurvePrivateKey

    def sign(self, data: bytes) -> bytes:
        """Sign: the same data give the same signature (RFC 6979), ASN.1 DER."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        return self.key.sign(data, ECDSA(SHA256(), deterministic_signing=True))


@dataclass(frozen=True)
class Verifier:
    """A public key."""

    key: EllipticCurvePublicKey

    def accepts(self, signature: bytes, data: bytes) -> bool:
        """Tell whether a signature is this key's over these data."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self.key.verify(signature, data, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def signer(path: Path) -> Signer:
    """Read a private key.

    Raises:
        MissingError: When `cryptography` is not installed, or a password is needed and nobody can be asked.
        StageError: When the password is wrong.
        UsageError: When the file holds no such key.
    """
    library, data = _library(), _read(path)
    body, encrypted = box.boxed(data), b"ENCRYPTED" in data
    try:
        if body is not None:
            key = library.load_der_private_key(box.opened(body, _password(path)), None)
        else:
            key = library.load_pem_private_key(data, _password(path) if encrypted else None)
    except (ValueError, TypeError) as error:
        if encrypted:
            raise StageError(f"the key cannot be decrypted: is {PASSWORD} right?", where=str(path)) from error
        raise UsageError("no private key in PEM", where=str(path), then=_ADVICE) from error
    return Signer(_fitting(key, "EllipticCurvePrivateKey", path))


def verifier(path: Path) -> Verifier:
    """Read a public key.

    Raises:
        MissingError: When `cryptography` is not installed.
        UsageError: When the file holds no such key.
    """
    load, data = _library().load_pem_public_key, _read(path)
    try:
        key = load(data)
    except (ValueError, TypeError) as error:
        raise UsageError("no public key in PEM", where=str(path), then=_PUBLIC) from error
    return Verifier(_fitting(key, "EllipticCurvePublicKey", path))


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingError("signing needs 'cryptography'", then="pip install 'modelpack[sign]'") from error
    return serialization


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror}", where=str(path)) from error


@functools.cache
def _password(path: Path) -> bytes:
    """Take the password from the environment, or ask whoever sits at the terminal."""
    known = os.environ.get(PASSWORD)
    if known is None and not sys.stdin.isatty():
        raise MissingError("the key is encrypted and there is no password", where=str(path), then=f"set {PASSWORD}")
    if known is None:
        import getpass

        known = getpass.getpass(f"Password of {path}: ")
    return known.encode()


def _fitting(key: object, kind: str, path: Path) -> Any:
    """Refuse a key of another kind or curve."""
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, getattr(ec, kind)) or key.curve.name != "secp256r1":
        raise UsageError("the key is not ECDSA on the curve P-256", where=str(path), then=_ADVICE)
    return key
