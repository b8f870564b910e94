"""Tokens for a registry: what it asks for, and who sells it (Docker registry v2 token and OAuth2 specifications)."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelpack.container.blob import MAX_JSON
from modelpack.container.patience import BUSY, busy
from modelpack.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import requests

    from modelpack.container.login import Login

TIMEOUT = (10.0, 120.0)
_EARLY = 10.0
"""Seconds before its end that a token is no longer used."""


@dataclass(frozen=True)
class Challenge:
    """What a registry asks for when it refuses a stranger (RFC 7235, ``WWW-Authenticate``).

    Attributes:
        scheme: ``basic``, ``bearer`` or something unknown.
        realm: Where tokens are sold.
        service: For whom the token is meant.
        scopes: What it must allow, such as ``repository:a/b:pull``.
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Challenge:
        """Read the header.

        >>> Challenge.parse('Bearer realm="https://a.example/token",scope="repository:a:pull repository:b:pull"').scopes
        ('repository:a:pull', 'repository:b:pull')
        """
        scheme, _, rest = text.partition(" ")
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        return cls(
            scheme.lower(), asked.get("realm", ""), asked.get("service", ""), tuple(asked.get("scope", "").split())
        )


@dataclass(frozen=True)
class Token:
    """A token, and until when it is good (seconds of the monotonic clock)."""

    text: str
    until: float

    @property
    def fresh(self) -> bool:
        """Whether it will be good for the next request."""
        return time.monotonic() < self.until - _EARLY


def merged(scopes: Iterable[str]) -> list[str]:
    """Ask for every right on a resource at once.

    >>> merged(["repository:a/b:pull", "repository:c:pull", "repository:a/b:push,pull"])
    ['repository:a/b:pull,push', 'repository:c:pull']
    """
    rights: dict[str, set[str]] = {}
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        rights.setdefault(resource, set()).update(actions.split(","))
    return [f"{resource}:{','.join(sorted(actions))}" for resource, actions in rights.items()]


def buy(
    session: requests.Session, challenge: Challenge, scopes: Iterable[str], known: Login, *, plain: bool, registry: str
) -> Token:
    """Fetch a token with the user's credentials, or as a stranger.

    Args:
        session: What sends.
        challenge: Who sells it.
        scopes: What it shall allow; a seller leaves out what the user may not do.
        known: Who the user is.
        plain: Whether credentials may go over plain HTTP.
        registry: Host, for errors.

    Raises:
        BrokenError: When the seller is busy.
        MissingError: When the seller is not to be trusted, does not answer, or sells none.
    """
    import requests

    if urlsplit(challenge.realm).scheme not in (("https", "http") if plain else ("https",)):
        raise MissingError(f"the registry sells tokens at {challenge.realm!r:.120}, which is not safe", where=registry)
    wanted = merged(scopes)
    query: dict[str, Any] = {"service": challenge.service} if challenge.service else {}
    try:
        if known.token:
            grant = {"grant_type": "refresh_token", "refresh_token": known.token, "client_id": "modelpack"}
            form = {**query, **grant, "scope": " ".join(wanted)}
            answer = session.post(challenge.realm, data=form, timeout=TIMEOUT, allow_redirects=False)
        else:
            headers = {"Authorization": known.basic} if known.username else {}
            answer = session.get(
                challenge.realm,
                params={**query, "scope": wanted},
                headers=headers,
                timeout=TIMEOUT,
                allow_redirects=False,
            )
        if answer.status_code in BUSY:
            what = f"{challenge.realm} answers {answer.status_code} where a token is sold"
            raise busy(answer.status_code, answer.headers, what, registry)
        body = answer.json() if answer.status_code == 200 and len(answer.content) <= MAX_JSON else {}
    except (requests.RequestException, ValueError) as error:
        raise MissingError(f"no token from {challenge.realm}: {type(error).__name__}", where=registry) from error
    return _token(body, answer.status_code, challenge.realm, registry)


def _token(body: Any, status: int, realm: str, registry: str) -> Token:
    text = (body.get("token") or body.get("access_token")) if isinstance(body, dict) else None
    if not isinstance(text, str):
        then = f"docker login {registry}"
        raise MissingError(f"the registry gives no token ({status} from {realm})", where=registry, then=then)
    seconds = body.get("expires_in")
    return Token(text, time.monotonic() + (seconds if isinstance(seconds, (int, float)) and seconds > 0 else 60))
