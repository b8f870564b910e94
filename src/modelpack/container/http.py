"""Speaking to a registry: logins, redirects, patience, errors (OCI distribution specification 1.1)."""

from __future__ import annotations

import contextlib
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

from modelpack.container import login
from modelpack.container.blob import Blob, Part
from modelpack.container.patience import BrokenError, busy, persist
from modelpack.container.token import TIMEOUT, Challenge, Token, buy
from modelpack.errors import MissingError, ModelpackError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    import requests

    from modelpack.container.reference import ImageName

PLAIN = "MODELPACK_PLAIN_HTTP"
"""Environment variable: registries, separated by commas, that are spoken to without TLS."""
_HOSTS = {"docker.io": "registry-1.docker.io"}
_MOVED = (301, 302, 303, 307, 308)
_METHOD_STAYS = (307, 308)
_REDIRECTS = 5
ADVICE = "check the network and HTTPS_PROXY"


class Registry:
    """One repository of one registry; plain HTTP is spoken to this machine, and to those that `PLAIN` names."""

    def __init__(
        self,
        name: ImageName,
        scopes: Iterable[str] = (),
        *,
        advice: str = ADVICE,
        moved: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            name: Which repository.
            scopes: Rights that will be needed, so that one token has them all; more are asked for as needed.
            advice: What to do when it does not answer.
            moved: Told of every so many bytes of blobs that are there now.
        """
        import requests

        self.name, self.moved, self._advice = name, moved, advice
        self._plain = name.loopback or name.registry in os.environ.get(PLAIN, "").replace(" ", "").split(",")
        scheme = "http" if self._plain else "https"
        self._root = f"{scheme}://{_HOSTS.get(name.registry, name.registry)}/v2/{name.repository}/"
        self._scopes = tuple(scopes)
        self._challenge: Challenge | None = None
        self._token: Token | None = None
        self._reached = False
        self._session = requests.Session()
        self._session.trust_env = not name.loopback  # a proxy cannot reach this machine
        self._session.auth = _keep_header
        self._session.headers["Accept-Encoding"] = "identity"  # digests are of the bytes as they are stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Blob | bytes | None = None,
        allow: tuple[int, ...] = (200,),
        again: bool = True,
    ) -> requests.Response:
        """Send one request, with credentials when the registry asks for them.

        Args:
            method: HTTP verb.
            path: Relative to the repository, or a whole address that the registry gave.
            headers: More headers.
            body: What to upload.
            allow: Status codes that are answers, not failures.
            again: Whether to try again when the connection breaks or the registry is busy.

        Raises:
            BrokenError: When the connection breaks or the registry is busy.
            MissingError: When the registry does not answer or refuses.
            UsageError: When it does not have what was asked for.
        """
        url = urljoin(self._root, path)

        def attempt() -> requests.Response:
            response = self._admitted(method, url, headers or {}, body)
            self._reached = True
            if response.status_code in allow:
                return response
            with response:
                raise self.refusal(method, response)

        return persist(attempt) if again else attempt()

    def _admitted(
        self, method: str, url: str, headers: Mapping[str, str], body: Blob | bytes | None
    ) -> requests.Response:
        """Send, and once more with what a refusal asks for."""
        if self._challenge is not None and self._token is not None and not self._token.fresh:
            self._token = self._bought(self._challenge)
        response = self._followed(method, url, headers, body)
        if response.status_code != 401 or not self._same_host(response.url):
            return response
        response.close()
        challenge = Challenge.parse(response.headers.get("WWW-Authenticate", ""))
        if challenge.scheme not in {"basic", "bearer"}:
            told = response.headers.get("WWW-Authenticate", "")
            raise MissingError(
                f"the registry asks for authentication in an unknown way: {told!r:.120}", where=str(self.name)
            )
        self._challenge = challenge
        if challenge.scheme == "bearer":
            self._token = self._bought(challenge)
        return self._followed(method, url, headers, body)

    def _bought(self, challenge: Challenge) -> Token:
        self._scopes = (*self._scopes, *challenge.scopes)
        registry = self.name.registry
        return buy(self._session, challenge, self._scopes, self._login, plain=self._plain, registry=registry)

    @cached_property
    def _login(self) -> login.Login:
        return login.find(self.name.registry)

    def _authorization(self) -> dict[str, str]:
        if self._token is not None:
            return {"Authorization": f"Bearer {self._token.text}"}
        if self._challenge is not None and self._challenge.scheme == "basic":
            return {"Authorization": self._login.basic} if self._login.username else {}
        return {}

    def _followed(
        self, method: str, url: str, headers: Mapping[str, str], body: Blob | bytes | None
    ) -> requests.Response:
        """Send and follow redirects; credentials go to the registry's own address only."""
        for _ in range(_REDIRECTS + 1):
            if urlsplit(url).scheme != "https" and not self._plain:
                raise MissingError(f"the registry sends us to {url!r:.120}, which is not safe", where=str(self.name))
            own = self._authorization() if self._same_host(url) else {}
            response = self._once(method, url, {**headers, **own}, body)
            place = response.headers.get("Location", "")
            keeps = method in {"GET", "HEAD"} or response.status_code in _METHOD_STAYS
            if response.status_code not in _MOVED or not place or not keeps:
                return response
            response.close()
            url = urljoin(url, place)
        raise MissingError(f"the registry redirects more than {_REDIRECTS} times", where=str(self.name))

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: Blob | bytes | None) -> requests.Response:
        import requests

        options: dict[str, Any] = {"headers": headers, "timeout": TIMEOUT, "allow_redirects": False}
        try:
            if not isinstance(body, Blob) or not body.size:
                data = body if isinstance(body, bytes) else None
                return self._session.request(method, url, data=data, stream=method == "GET", **options)
            with body.path.open("rb") as stream:
                stream.seek(body.offset)
                part: Any = Part(stream, body.size)
                return self._session.request(method, url, data=part, **options)
        except requests.RequestException as error:
            if self._reached:
                raise _broken(error, str(self.name)) from error
            told = f"the registry {self.name.registry} does not answer: {_short(error)}"
            unsafe = isinstance(error, requests.exceptions.SSLError)
            raise MissingError(told, where=str(self.name), then=self._no_tls if unsafe else self._advice) from error

    @property
    def _no_tls(self) -> str:
        """What to do where TLS does not come about."""
        return f"REQUESTS_CA_BUNDLE names its authority; without TLS it is {PLAIN}={self.name.registry}"

    def _same_host(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._root)[:2]

    def refusal(self, method: str, response: requests.Response) -> ModelpackError:
        """Say what an answer that was not hoped for means to the user."""
        where, status = str(self.name), response.status_code
        told = _told(response)
        if status == 404 and method in {"GET", "HEAD"}:
            return UsageError("the registry has no such image", where=where, then=f"{method} {response.url} gave 404")
        if status == 404:
            then = "create the repository or project there first, or correct the name"
            return UsageError(f"the registry has no such place{told}", where=where, then=then)
        if status in {401, 403}:
            return MissingError(
                f"the registry refuses: it wants other credentials{told}",
                where=where,
                then=f"docker login {self.name.registry}  (a private image that does not exist looks the same)",
            )
        what = f"the registry answers {status} to {method} {response.url}{told}"
        return busy(status, response.headers, what, where)


def received(response: requests.Response, where: str) -> Generator[bytes]:
    """Give an answer's body piece by piece as it arrives, and close it.

    Raises:
        BrokenError: When the connection breaks.
    """
    from urllib3.exceptions import HTTPError

    with response:
        try:
            while piece := response.raw.read1(1 << 20):
                yield piece
        except (HTTPError, OSError) as error:
            raise _broken(error, where) from error


def limited(response: requests.Response, limit: int, where: str) -> bytes:
    """Read an answer's body of at most `limit` bytes.

    Raises:
        BrokenError: When the connection breaks.
        StageError: When it is longer.
    """
    data = b""
    with contextlib.closing(received(response, where)) as pieces:
        for piece in pieces:
            data += piece
            if len(data) > limit:
                raise StageError(f"the registry sent more than {limit} bytes where a manifest is expected", where=where)
    return data


def _broken(error: Exception, where: str) -> BrokenError:
    return BrokenError(f"the connection to the registry broke: {_short(error)}", where=where, then=ADVICE)


def _told(response: requests.Response) -> str:
    """Quote the first reason that a registry gives (distribution specification, "Error codes")."""
    try:
        streamed = response.request.method == "GET"
        reason = json.loads(limited(response, 1 << 16, "") if streamed else response.content)["errors"][0]
        text = f"{reason.get('code', '')}: {reason.get('message', '')}".strip(": ")
    except (ModelpackError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return ""
    return f" ({''.join(char for char in text if char.isprintable())[:200]})" if text else ""


def _keep_header(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the Authorization header as it is: requests would put in what a netrc file says."""
    return request


def _short(error: Exception) -> str:
    """Name the innermost reason of a chain of connection errors."""
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(reason).rpartition(">: ")[2] or type(error).__name__
