"""Speaking to a registry: authentication, TLS, errors (OCI distribution specification; Docker token protocol)."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

from modelpack.container.blob import MAX_JSON, Blob, Part
from modelpack.errors import MissingError, ModelpackError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import requests

    from modelpack.container.reference import ImageName

_HOSTS = {"docker.io": "registry-1.docker.io"}
_TIMEOUT = (10.0, 120.0)
_RETRIED = (429, 502, 503, 504)
_ADVICE = (
    "check the network and HTTPS_PROXY; or take the base from a file (oci-archive:, docker-archive:, rootfs: from "
    "`make base`); or use --offline if this base was used before"
)


class Registry:
    """One repository of one registry; plain HTTP is spoken to this machine only."""

    def __init__(self, name: ImageName) -> None:
        """Prepare a connection; nothing is sent yet."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self.name = name
        scheme = "http" if name.loopback else "https"
        self._root = f"{scheme}://{_HOSTS.get(name.registry, name.registry)}/v2/{name.repository}/"
        self._authorization = ""
        self._session = requests.Session()
        self._session.trust_env = not name.loopback  # a proxy cannot reach this machine
        self._session.auth = _keep_header
        retry = Retry(
            total=3,
            connect=0,
            backoff_factor=0.5,
            status_forcelist=_RETRIED,
            allowed_methods=("GET", "HEAD"),
            raise_on_status=False,
        )
        for prefix in ("http://", "https://"):
            self._session.mount(prefix, HTTPAdapter(max_retries=retry))

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
    ) -> requests.Response:
        """Send one request, with a token fetched when the registry asks for one.

        Args:
            method: HTTP verb.
            path: Relative to the repository, or a whole address that the registry gave.
            headers: More headers.
            body: What to upload.
            allow: Status codes that are answers, not failures.

        Raises:
            MissingError: When the registry does not answer or refuses.
            UsageError: When it does not have what was asked for.
        """
        url = urljoin(self._root, path)
        response = self._once(method, url, headers or {}, body)
        if response.status_code == 401 and self._same_host(url):
            response.close()
            self._authorization = self._authorize(response.headers.get("WWW-Authenticate", ""))
            response = self._once(method, url, headers or {}, body)
        if response.status_code in allow:
            return response
        response.close()
        raise self._refusal(method, url, response.status_code)

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: Blob | bytes | None) -> requests.Response:
        import requests

        own = {"Authorization": self._authorization} if self._authorization and self._same_host(url) else {}
        try:
            if not isinstance(body, Blob):
                return self._session.request(
                    method, url, headers={**own, **headers}, data=body, timeout=_TIMEOUT, stream=method == "GET"
                )
            with body.path.open("rb") as stream:
                stream.seek(body.offset)
                part: Any = Part(stream, body.size)
                return self._session.request(method, url, headers={**own, **headers}, data=part, timeout=_TIMEOUT)
        except requests.RequestException as error:
            raise MissingError(
                f"the registry {self.name.registry} does not answer: {_short(error)}",
                where=str(self.name),
                then=_ADVICE,
            ) from error

    def _same_host(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._root)[:2]

    def _refusal(self, method: str, url: str, status: int) -> ModelpackError:
        """Say what a status code means for the user."""
        where = str(self.name)
        if status == 404:
            return UsageError("the registry has no such image", where=where, then=f"{method} {url} gave 404")
        if status in (401, 403):
            return MissingError(
                "the registry refuses: it wants other credentials",
                where=where,
                then=f"docker login {self.name.registry}  (a private image that does not exist looks the same)",
            )
        return MissingError(f"the registry answers {status} to {method} {url}", where=where)

    def _authorize(self, challenge: str) -> str:
        """Answer a challenge: basic credentials, or a token fetched with them (or without, for public images)."""
        scheme, _, rest = challenge.partition(" ")
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        known = credentials(self.name.registry)
        if scheme.lower() == "basic":
            return _basic(known)
        realm = asked.get("realm", "")
        safe = urlsplit(realm).scheme == "https" or (urlsplit(realm).scheme == "http" and self.name.loopback)
        if scheme.lower() != "bearer" or not safe:
            raise MissingError(
                f"the registry asks for authentication in an unknown way: {challenge!r:.120}", where=str(self.name)
            )
        query = {key: asked[key] for key in ("service", "scope") if key in asked}
        return f"Bearer {self._token(realm, query, known)}"

    def _token(self, realm: str, query: Mapping[str, str], known: Mapping[str, str]) -> str:
        import requests

        try:
            if known.get("identitytoken"):
                grant = {"grant_type": "refresh_token", "refresh_token": known["identitytoken"]}
                form = {**query, **grant, "client_id": "modelpack"}
                answer = self._session.post(realm, data=form, timeout=_TIMEOUT)
            else:
                basic = {"Authorization": _basic(known)} if known.get("username") else {}
                answer = self._session.get(realm, params=dict(query), headers=basic, timeout=_TIMEOUT)
            body = answer.json() if answer.ok and len(answer.content) <= MAX_JSON else {}
        except (requests.RequestException, ValueError) as error:
            raise MissingError(f"no token from {realm}: {_short(error)}", where=str(self.name), then=_ADVICE) from error
        token = body.get("token") or body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str):
            raise MissingError(
                f"the registry gives no token ({answer.status_code} from {realm})",
                where=str(self.name),
                then=f"docker login {self.name.registry}",
            )
        return token


def received(response: requests.Response, where: str) -> Generator[bytes]:
    """Give an answer's body piece by piece, and close it.

    Raises:
        MissingError: When the connection breaks.
    """
    import requests

    with response:
        try:
            yield from response.iter_content(1 << 20)
        except requests.RequestException as error:
            raise MissingError(
                f"the connection to the registry broke: {_short(error)}", where=where, then=_ADVICE
            ) from error


def limited(response: requests.Response, limit: int, where: str) -> bytes:
    """Read an answer's body of at most `limit` bytes.

    Raises:
        StageError: When it is longer.
    """
    data = b""
    with contextlib.closing(received(response, where)) as pieces:
        for piece in pieces:
            data += piece
            if len(data) > limit:
                raise StageError(f"the registry sent more than {limit} bytes where a manifest is expected", where=where)
    return data


def credentials(registry: str) -> dict[str, str]:
    """Find what `docker login` stored for a registry, credential helpers included; empty when nothing.

    Raises:
        MissingError: When a credential helper fails.
    """
    import docker.auth
    import docker.errors

    try:
        found = docker.auth.load_config().resolve_authconfig(registry) or {}
    except docker.errors.DockerException as error:
        raise MissingError(f"docker's credentials for {registry} cannot be read: {error}") from error
    return {key.lower(): value for key, value in found.items() if isinstance(value, str)}


def _keep_header(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the Authorization header as it is: requests would put in what a netrc file says."""
    return request


def _basic(known: Mapping[str, str]) -> str:
    import requests

    request = requests.Request("GET", "http://localhost", auth=(known.get("username", ""), known.get("password", "")))
    return str(request.prepare().headers["Authorization"])


def _short(error: Exception) -> str:
    """Name the innermost reason of a chain of connection errors."""
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(reason).rpartition(">: ")[2] or type(error).__name__
