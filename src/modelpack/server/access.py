"""Who may ask: everybody, or whoever shows one of the operator's tokens, a certificate, or both.

Source: RFC 6750, "The OAuth 2.0 Authorization Framework: Bearer Token Usage".
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .faults import Forbidden, StartError, Unproven

if TYPE_CHECKING:
    from .settings import Settings

_log = logging.getLogger("modelpack.server")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,1024}=*")
_SHOWN = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class Access:
    """The tokens of this server, of which only digests are kept.

    Args:
        settings: One token, or a file with one a line; neither lets everybody ask, where no certificate is needed.

    Raises:
        StartError: When both are given, the file cannot be read, or what is given is no token.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.token and settings.token_file:
            raise StartError("give one of MODELPACK_TOKEN and MODELPACK_TOKEN_FILE: a file may hold several tokens")
        self._certified = bool(settings.tls_client_ca)
        self._file = Path(settings.token_file) if settings.token_file else None
        self._known = _read(self._file) if self._file else _digests([settings.token], "MODELPACK_TOKEN")

    def check(self, authorization: str, *, certified: bool) -> None:
        """Let a request pass that shows what is asked for; how long it takes to look for a token tells nothing.

        Args:
            authorization: Its header of this name.
            certified: Whether its connection has shown a certificate, which TLS has verified.

        Raises:
            Forbidden: When a certificate is missing.
            Unproven: When a token is missing, or unknown.
        """
        if self._certified and not certified:
            raise Forbidden("this server asks for a client's certificate, and the connection has shown none")
        if not self._known:
            return
        shown = _SHOWN.fullmatch(authorization)
        if shown is None:
            raise Unproven("this server asks for a token: send the header 'Authorization: Bearer TOKEN'")
        digest = _digest(shown[1])
        if not sum([hmac.compare_digest(digest, known) for known in self._known]):
            raise Unproven("this server does not know the token", shown=True)

    def refresh(self) -> None:
        """Read the file again; one that cannot be used is logged and changes nothing."""
        if self._file is None:
            return
        try:
            self._known = _read(self._file)
        except StartError as error:
            _log.error("the tokens stay as they are: %s", error)
        else:
            _log.info("tokens: %d", len(self._known))


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StartError(f"the tokens in {path} cannot be read: {error}") from None
    if found := _digests([line.strip() for line in lines], str(path)):
        return found
    raise StartError(f"{path} has no token: write one a line")


def _digests(tokens: list[str], source: str) -> list[bytes]:
    tokens = [token for token in tokens if token]
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise StartError(f"{source} has a token that is too short or none: 16 letters, digits or ._~+/- at least")
    return [_digest(token) for token in tokens]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
