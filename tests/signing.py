"""Keys for the tests of signatures, made by openssl the way a user makes them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess

import pytest


def openssl(*arguments: object) -> None:
    """Run openssl; skips where it is missing."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (apt-get install openssl)")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def pair(folder, name="signer", *protect):
    """Make a private key and its public one."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *protect, "-out", private)
    password = ["-passin", protect[-1]] if protect else []
    openssl("pkey", "-in", private, *password, "-pubout", "-out", public)
    return private, public


def cosigns(private, password: bytes):
    """Write a private key the way `cosign generate-key-pair` does."""
    from nacl.secret import SecretBox

    der, place = private.with_suffix(".der"), private.with_suffix(".cosign")
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", private, "-outform", "DER", "-out", der)
    salt, nonce = bytes(range(32)), bytes(range(24))
    key = hashlib.scrypt(password, salt=salt, n=65536, r=8, p=1, maxmem=1 << 28, dklen=32)
    text = {
        "kdf": {"name": "scrypt", "params": {"N": 65536, "r": 8, "p": 1}, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(SecretBox(key).encrypt(der.read_bytes(), nonce).ciphertext).decode(),
    }
    body = base64.encodebytes(json.dumps(text).encode()).decode()
    kind = "ENCRYPTED SIGSTORE PRIVATE KEY"
    place.write_text(f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n")
    return place
