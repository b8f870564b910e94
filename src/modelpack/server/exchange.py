"""One HTTP exchange: reading a request with limits, choosing a media type, sending an answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from . import tracing
from .faults import Disconnected, Failed, Fault, Forbidden, Full, Invalid, Late, Unknown, Unproven, Unready
from .signature import quote

if TYPE_CHECKING:
    from .patience import Patience
    from .settings import Settings

STATUSES: dict[type[Fault], int] = {
    Invalid: 400, Unproven: 401, Forbidden: 403, Unknown: 404, Full: 429, Failed: 500, Unready: 503, Late: 504,
}  # fmt: skip

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"
FORM, BYTES = "application/x-www-form-urlencoded", "application/octet-stream"
UNSAID = ("", FORM, BYTES)
"""What clients send that were told no media type: most send none, `curl -d` calls everything a form, others bytes."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 * 2**20


class Refused(Fault):
    """A request that only HTTP can get wrong: its method, media type, size or speed.

    Args:
        status: The HTTP status.
        message: What was wrong and what was expected, for the client.
        headers: Further response headers, such as `Accept-Encoding`.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Response:
    """An answer before it is sent."""

    status: int
    body: bytes
    media: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200, **headers: str) -> Response:
    """Answer with a JSON value."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, orjson.dumps(content), headers=named)


def failure(fault: Fault, content: Any = None) -> Response:
    """Answer a fault with its status, its headers, and `content`, which is `{"error": message}` when None."""
    content = {"error": fault.message} if content is None else content
    if isinstance(fault, Refused):
        return as_json(content, fault.status, **fault.headers)
    named = {}
    if isinstance(fault, (Full, Unready)):
        named["retry_after"] = str(fault.retry_after)
    elif isinstance(fault, Unproven):
        named["www_authenticate"] = 'Bearer realm="modelpack"' + (', error="invalid_token"' if fault.shown else "")
    return as_json(content, STATUSES[type(fault)], **named)


def identity(given: str) -> str:
    """Give what a request is called: the client's own id for it, where that is safe to repeat, else a new one."""
    return given if _SAFE_ID.fullmatch(given) else os.urandom(12).hex()


class Request:
    """What arrived: method, path and the values of its named parts, headers, and the body as it comes."""

    __slots__ = (
        "_headers",
        "_limits",
        "_patience",
        "_receive",
        "_scope",
        "_trace",
        "arrived",
        "gone",
        "id",
        "method",
        "parts",
        "path",
        "unread",
    )

    def __init__(self, scope: Scope, receive: Receive, limits: Settings, patience: Patience) -> None:
        self._limits, self._patience, self._scope = limits, patience, scope
        self._trace: tracing.Trace | None = None
        self.parts: dict[str, str] = {}
        self.arrived = perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self.gone: Callable[[], bool] = scope.get("modelpack.gone", _never)
        self.unread = self._headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self._headers
        self.id = identity(self.header("x-request-id"))

    def header(self, name: str) -> str:
        """Give a header's value, or an empty text."""
        return self._headers.get(name.encode(), b"").decode("latin-1").strip()

    @property
    def certified(self) -> bool:
        """Whether its connection has shown a client's certificate, which was found good."""
        return bool(self._scope.get("modelpack.certified"))

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return str(self._scope["scheme"])

    @property
    def version(self) -> str:
        """Of HTTP."""
        return str(self._scope["http_version"])

    @property
    def client(self) -> str:
        """The address at the other end of the connection."""
        return str(self._scope["client"][0]) if self._scope.get("client") else ""

    @property
    def trace(self) -> tracing.Trace:
        """Where it belongs in its caller's trace, or the trace that begins with it."""
        if self._trace is None:
            given = [value for name, value in self._scope["headers"] if name == b"traceparent"]
            self._trace = tracing.continued([value.decode("latin-1").strip() for value in given])
        return self._trace

    @property
    def ids(self) -> dict[str, str]:
        """What the log calls it."""
        return {"request_id": self.id, **self.trace.ids}

    @property
    def media(self) -> str:
        """The body's media type, without parameters; a charset other than UTF-8 is refused."""
        return _media(self.header("content-type"))

    def expect(self, taken: Iterable[str], unsaid: Iterable[str] = ()) -> str:
        """Give the body's media type, which must be one of these.

        Args:
            taken: What the message names.
            unsaid: What is taken beside that, because clients send it without meaning it.

        Raises:
            Refused: 415 for any other.
        """
        if (media := self.media) in (taken := tuple(taken)) or media in unsaid:
            return media
        got = repr(media[:80]) if media else "none"
        raise Refused(415, f"the content type is {got}: expected {'one of ' * (len(taken) > 1)}{quote(taken)}")

    def from_here(self) -> None:
        """Refuse what a page from elsewhere makes a browser ask for, without its user's wish; programs may pass.

        Raises:
            Forbidden: When the page that asks came from elsewhere; browsers say from where, and nothing else does.
        """
        origin = self.header("origin")
        if origin and origin.partition("://")[2] != self.header("host"):
            raise Forbidden(f"a page of {origin[:80]!r} may not change what this server does")

    async def body(self) -> bytes:
        """Read the whole body.

        Raises:
            Refused: 413 when it is too large, 408 when it is too slow, 415 when it is compressed.
            Disconnected: When the client leaves in the middle.
        """
        limit = self._limits.max_body
        if self.header("content-encoding") not in ("", "identity"):
            plain = "a compressed body is not read: send it without Content-Encoding"
            raise Refused(415, plain, accept_encoding="identity")
        length = self.header("content-length")
        if length and int(length) > limit:
            raise Refused(413, f"the body has {length} bytes, and the limit is {limit}")
        try:
            return await self._patience.wait(self._whole(limit))
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self._patience.seconds:g} seconds") from None

    async def _whole(self, limit: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Disconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self.unread = message.get("more_body", False)
            if size > limit:
                raise Refused(413, f"the body is larger than the limit of {limit} bytes")
            if not self.unread:
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def discard(self) -> None:
        """Let a client that is still sending see its answer: a socket closed over unread bytes is reset."""
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
                    left -= len(message["body"])


@functools.lru_cache(64)
def _media(content_type: str) -> str:
    media, _, parameters = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, f"the charset {charset[1][:40]!r} is not UTF-8")
    return media.strip().lower()


def _never() -> bool:
    return False


async def respond(request: Request, response: Response, send: Send, *, close: bool) -> None:
    """Send an answer; one that comes before the end of the request's body closes the connection."""
    close = close or request.unread
    headers = [
        (b"content-type", response.media.encode()),
        (b"content-length", str(len(response.body)).encode()),
        (b"x-request-id", request.id.encode()),
        *((name.encode(), value.encode("latin-1", "replace")) for name, value in response.headers.items()),
    ]
    if response.status == 204:
        headers = headers[2:]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if request.unread:
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await request.discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await send({"type": "http.response.body", "body": response.body, "more_body": False})


@functools.lru_cache(64)
def preferred(accept: str, offers: tuple[str, ...]) -> str:
    """Choose the offer that an Accept header likes best; the first one wins ties, and when nothing fits.

    >>> preferred("text/html,*/*;q=0.8", ("application/json", "text/html"))
    'text/html'
    >>> preferred("*/*", ("application/json", "text/html"))
    'application/json'
    """
    if accept in ("", "*/*", offers[0]):
        return offers[0]
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        weights[media] = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0

    def liking(offer: str) -> float:
        return weights.get(offer, weights.get(f"{offer.partition('/')[0]}/*", weights.get("*/*", 0.0)))

    return max(offers, key=liking)
