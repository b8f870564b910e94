"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: object) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("needs openssl")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, as PEM files."""

    path: Path
    key: Path

    def install(self, path: Path, key: Path) -> None:
        """Put copies where a server looks for them, each at once."""
        for source, target in ((self.key, key), (self.path, path)):
            new = target.with_name(f".{target.name}")
            new.write_bytes(source.read_bytes())
            new.replace(target)


class Authority:
    """Somebody who vouches for others."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.path, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        subject = ("-days", 2, "-subj", f"/CN={name}")
        _openssl("req", "-x509", *_CURVE, "-keyout", self._key, "-out", self.path, *subject)

    def issue(self, name: str, days: int = 2) -> Certificate:
        """Sign a certificate, for this machine's own address too; one of less than no days has expired."""
        path, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        names = self.folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl("req", *_CURVE, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signing = ("-CA", self.path, "-CAkey", self._key, "-CAcreateserial", "-days", days, "-extfile", names)
        _openssl("x509", "-req", "-in", request, *signing, "-out", path)
        return Certificate(path, key)

    def trusted(self, shown: Certificate | None = None) -> ssl.SSLContext:
        """Make what a client asks with that trusts this authority's servers, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.path)
        if shown is not None:
            context.load_cert_chain(shown.path, shown.key)
        return context
