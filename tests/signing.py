"""Keys for the tests of signatures, made by openssl the way a user makes them."""

from __future__ import annotations

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
