"""A request over HTTP: its head, and its body as it arrives, within limits of size and time."""

from __future__ import annotations

import asyncio
import functools
import re
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from . import tracing
from .exchange import Refused, identity
from .faults import Disconnected, Forbidden
from .signature import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .exchange import Response
    from .patience import Patience
    from .settings import Settings

_AHEAD = 2**16  # bytes of a body that may arrive before anybody asks for it


class Link(Protocol):
    """A connection, as its requests see it.

    Attributes:
        limits: The server's.
        patience: How long a body may take.
        certified: Whether the client has shown a certificate, which was found good.
        held: Whether what the client sends waits outside.
    """

    limits: Settings
    patience: Patience
    certified: bool
    held: bool

    @property
    def scheme(self) -> str:
        """`http` or `https`."""

    @property
    def client(self) -> str:
        """The address at the other end."""

    @property
    def closing(self) -> bool:
        """Whether nothing more is sent."""

    def take(self, request: Request) -> None:
        """Answer a request whose head has arrived, or let it wait for those before it."""

    def hold(self) -> None:
        """Let what else the client sends wait outside."""

    def invite(self, *, asked: bool) -> None:
        """Read on for the request that is being answered.

        Args:
            asked: Whether its client waits to be told so.
        """

    def answer(self, request: Request, response: Response, *, close: bool) -> None:
        """Send an answer and turn to the next request.

        Args:
            request: Which was being answered; nothing is sent when it was taken back, or its client has left.
            response: The answer.
            close: Whether it is the connection's last.

        Raises:
            ValueError: When the value of a header has control characters.
        """

    def heard(self) -> None:
        """End: the client has sent everything behind its last answer."""


class Request:
    """What arrived: method, path and the values of its named parts, headers, and the body as it comes.

    The connection calls `arrive`, `end` and `lose`; all else is for who answers.

    Args:
        connection: Whence it comes.
        method: In capitals.
        path: Decoded, without the query.
        version: Of HTTP.
        headers: Names in lower case, and values.
        lasting: Whether its connection may be used for another.

    Attributes:
        parts: The values of the named parts of the path.
        arrived: When, by `perf_counter`.
        ended: Whether the body is whole.
        answered: Whether the answer has been sent.
        id: What the log and the answer call it.
    """

    __slots__ = (
        "_body",
        "_complete",
        "_connection",
        "_headers",
        "_lines",
        "_lost",
        "_size",
        "_trace",
        "answered",
        "arrived",
        "ended",
        "id",
        "lasting",
        "method",
        "parts",
        "path",
        "version",
    )

    def __init__(
        self,
        connection: Link,
        method: str,
        path: str,
        version: str,
        headers: list[tuple[bytes, bytes]],
        *,
        lasting: bool,
    ) -> None:
        self.arrived = perf_counter()
        self._connection = connection
        self.method, self.path, self.version, self.lasting = method, path, version, lasting
        self.parts: dict[str, str] = {}
        self._lines, self._headers = headers, dict(headers)
        self._trace: tracing.Trace | None = None
        self._body = BytesIO()  # no list of pieces: one of two bytes would take the memory of fifty
        self._size = 0
        self._complete: asyncio.Future[None] | None = None  # where somebody waits for the body
        self.ended = self.answered = self._lost = False
        self.id = identity(self.header("x-request-id"))

    def header(self, name: str) -> str:
        """Give a header's value, or an empty text."""
        found = self._headers.get(name.encode())
        return found.decode("latin-1").strip() if found else ""

    @property
    def certified(self) -> bool:
        """Whether its connection has shown a client's certificate, which was found good."""
        return self._connection.certified

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return self._connection.scheme

    @property
    def client(self) -> str:
        """The address at the other end of the connection."""
        return self._connection.client

    @property
    def trace(self) -> tracing.Trace:
        """Where it belongs in its caller's trace, or the trace that begins with it."""
        if self._trace is None:
            given = [value for name, value in self._lines if name == b"traceparent"]
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
        limit = self._connection.limits.max_body
        if b"content-encoding" in self._headers and self.header("content-encoding") not in ("", "identity"):
            plain = "a compressed body is not read: send it without Content-Encoding"
            raise Refused(415, plain, accept_encoding="identity")
        length = self.header("content-length")
        if length and int(length) > limit:
            raise Refused(413, f"the body has {length} bytes, and the limit is {limit}")
        if not (self.ended or self._lost or self._size > limit):
            await self._rest()
        if self._lost:
            raise Disconnected
        if self._size > limit:
            raise Refused(413, f"the body is larger than the limit of {limit} bytes")
        return self._body.getvalue()

    async def _rest(self) -> None:
        patience = self._connection.patience
        self._complete = asyncio.get_running_loop().create_future()
        asked = self.version != "1.0" and self.header("expect").lower() == "100-continue"
        self._connection.invite(asked=asked)
        try:
            await patience.wait(self._complete)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {patience.seconds:g} seconds") from None

    def gone(self) -> bool:
        """Tell, in any thread, whether the client has left."""
        return self._lost or self._connection.closing

    def answer(self, response: Response, *, close: bool) -> None:
        """Send its answer.

        Args:
            response: The answer.
            close: Whether it is the last on its connection.

        Raises:
            ValueError: When the value of a header has control characters.
        """
        self._connection.answer(self, response, close=close)

    def arrive(self, data: bytes) -> None:
        """Take a piece of the body; what is beyond the limit is dropped, and what nobody asked for waits outside."""
        if self.answered:
            return
        self._size += len(data)
        if self._size > self._connection.limits.max_body:
            self._body = BytesIO()
            self._wake()
        else:
            self._body.write(data)
            if self._complete is None and self._size > _AHEAD:
                self._connection.hold()

    def end(self) -> None:
        """Know that the body is whole."""
        self.ended = True
        if self.answered:
            self._connection.heard()
        else:
            self._wake()

    def lose(self) -> None:
        """Know that the rest will never come, or that nobody waits for the answer."""
        self._lost, self._body = True, BytesIO()
        self._wake()

    def _wake(self) -> None:
        if self._complete is not None and not self._complete.done():
            self._complete.set_result(None)


@functools.lru_cache(64)
def _media(content_type: str) -> str:
    media, _, parameters = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, f"the charset {charset[1][:40]!r} is not UTF-8")
    return media.strip().lower()
