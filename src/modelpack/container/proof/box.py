"""Private keys as `cosign generate-key-pair` writes them: scrypt (RFC 7914) and NaCl's secretbox around PKCS #8.

The PEM body is JSON that names both with their parameters (The Update Framework's Go implementation, "encrypted").
"""

from __future__ import annotations

import base64
import hashlib
import json
import re

from modelpack.errors import MissingError

_PEM = re.compile(
    rb"-----BEGIN ENCRYPTED (SIGSTORE|COSIGN) PRIVATE KEY-----\s+(.+?)\s*-----END ENCRYPTED \1", re.DOTALL
)
_MEMORY = 512 << 20
"""Most memory that deriving the key may take, in bytes; cosign's own keys take 64 MB."""


def boxed(data: bytes) -> bytes | None:
    """Give what is in a PEM file of that form; None for one of another form."""
    found = _PEM.search(data)
    return found[2] if found else None


def opened(body: bytes, password: bytes) -> bytes:
    """Decrypt a key; gives PKCS #8 in DER.

    Raises:
        MissingError: When PyNaCl is not installed.
        ValueError: When the password is wrong or the body malformed.
    """
    try:
        from nacl.exceptions import CryptoError
        from nacl.secret import SecretBox
    except ImportError as error:
        raise MissingError("keys of cosign need 'pynacl'", then="pip install 'modelpack[sign]'") from error
    try:
        parts = json.loads(base64.b64decode(body))
        kdf, cipher = parts["kdf"], parts["cipher"]
        if (kdf["name"], cipher["name"]) != ("scrypt", "nacl/secretbox"):
            raise ValueError("encrypted in another way")
        cost = {name.lower(): int(kdf["params"][name]) for name in ("N", "r", "p")}
        key = hashlib.scrypt(password, salt=base64.b64decode(kdf["salt"]), maxmem=_MEMORY, dklen=32, **cost)
        nonce = base64.b64decode(cipher["nonce"])
        return SecretBox(key).decrypt(base64.b64decode(parts["ciphertext"]), nonce)
    except (KeyError, TypeError, CryptoError, RecursionError, OverflowError) as error:
        raise ValueError("cannot be decrypted") from error
