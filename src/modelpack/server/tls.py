"""TLS for everything that listens: the server's certificate, who may ask, and renewed files without a restart.

Source: RFC 8446, "TLS 1.3", and RFC 5246 for 1.2; older versions are not spoken.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .faults import StartError

if TYPE_CHECKING:
    from .settings import Settings

_CERTIFICATE, _KEY, _ENCRYPTED = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----", b"ENCRYPTED"
_log = logging.getLogger("modelpack.server")


@dataclass(frozen=True)
class Pem:
    """What the files hold."""

    chain: bytes
    key: bytes
    clients: bytes | None


class Tls:
    """What connections are secured with; it follows its files.

    A client's certificate is asked for and never demanded in the handshake, since probes have none: whoever shows one
    that is not good ends there, and whoever shows none is let in to open routes alone.

    Args:
        settings: With the paths.

    Attributes:
        context: For the next connection; new with new files, so that no session of before is resumed.
        pem: The same for whoever brings TLS of its own.
        until: When the certificate ends, in seconds since 1970; 0 when clients refuse it already.

    Raises:
        StartError: When a file cannot be read, is not what it should be, or key and certificate are no pair.
    """

    def __init__(self, settings: Settings) -> None:
        self._chain, self._key = Path(settings.tls_cert), Path(settings.tls_key)
        self._clients = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        self._seen, self.until = self._stamps(), 0.0
        self.pem, self.context = self._load()

    def follow(self) -> None:
        """Take the files again when they are others than before; what cannot be used is logged and changes nothing."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self.pem, self.context = self._load()
        except StartError as error:
            _log.error("TLS stays as it is: %s", error)

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in (self._chain, self._key, self._clients) if path is not None]

    def _load(self) -> tuple[Pem, ssl.SSLContext]:
        pem = Pem(
            _read(self._chain, _CERTIFICATE, "certificate"),
            _read(self._key, _KEY, "private key"),
            _read(self._clients, _CERTIFICATE, "certificate") if self._clients else None,
        )
        if _ENCRYPTED in pem.key:
            raise StartError(f"the private key in {self._key} is encrypted: give it without a passphrase")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._chain, self._key)
            if self._clients:
                context.load_verify_locations(self._clients)
                context.verify_mode = ssl.CERT_OPTIONAL
        except OSError as error:
            raise StartError(self._worded(error)) from None
        self._tell(context)
        return pem, context

    def _worded(self, error: OSError) -> str:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            return f"the private key in {self._key} is not that of the certificate in {self._chain}"
        files = ", ".join(str(path) for path in (self._chain, self._key, self._clients) if path)
        return f"TLS cannot be had with {files}: {reason.lower().replace('_', ' ')}"

    def _tell(self, context: ssl.SSLContext) -> None:
        """Note until when the certificate holds, and log it, or why clients will refuse it."""
        try:
            until = _judged(context, self._chain)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", error.reason)
            _log.warning("TLS: clients will refuse the certificate in %s: %s", self._chain, reason)
            self.until = 0.0
        else:
            self.until = float(ssl.cert_time_to_seconds(until))
            asked = f", clients show one that {self._clients} vouches for" if self._clients else ""
            _log.info("TLS: the certificate in %s holds until %s%s", self._chain, until, asked)


def load(settings: Settings) -> Tls | None:
    """Give what the settings ask for; None is plain text.

    Raises:
        StartError: See `Tls`.
    """
    return Tls(settings) if settings.secured else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path, mark: bytes, kind: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartError(f"the {kind} for TLS cannot be read: {error}") from None
    if mark not in content:
        raise StartError(f"{path} has no {kind} in PEM")
    return content


def _judged(context: ssl.SSLContext, chain: Path) -> str:
    """Shake hands with itself, as a client that trusts this very certificate, and give the end of its validity.

    Raises:
        SSLError: When even such a client refuses it.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(chain)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(there, back)
    server = context.wrap_bio(back, there, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return str((client.getpeercert() or {}).get("notAfter"))
