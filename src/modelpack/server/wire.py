"""HTTP/1.1 on the socket: uvicorn's httptools protocol, with limits on time and size, and strict about framing."""

from __future__ import annotations

import functools
import http
import json
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import logs
from .joined import Joined

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from .app import App


class WireFault(Exception):  # noqa: N818 - it becomes an answer
    """The bytes cannot be a request that this server reads."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Protocol(HttpToolsProtocol):
    """One connection.

    1. A request line with its headers has a limit of bytes (431) and of seconds (408).
    2. Framing that two parsers could read differently is refused: two lengths, a length beside chunks, unknown codings.
    3. Bytes that are no request are answered after the answers that are owed for the requests before them.
    4. An offer to upgrade is ignored, and the body that follows it is still a body.
    5. Whoever takes nothing of an answer for as long as a body may take to arrive is cut off.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or refuse one connection too many."""
        self._joined = Joined(transport, self._watch)
        super().connection_made(cast("asyncio.Transport", self._joined))
        self._app = cast("App", self.config.app)
        self._limits = self._app.service.settings
        self._certified = bool(transport.get_extra_info("peercert"))
        self._heading, self._begun = True, False  # between requests or inside a head; inside a head
        self._head = self._raw = 0  # bytes of an unfinished head; bytes of an unfinished body as they came
        self._finished = self._owed = 0  # requests read; requests without their answer
        self._skipped = 0  # bytes of a body that the parser leaves to us
        self._fault: WireFault | None = None
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        if len(self.connections) > self._limits.max_connections:
            self._end(WireFault(503, f"{self._limits.max_connections} connections are open already: try again later"))
        else:
            self._arm()

    @property
    def fresh(self) -> bool:
        """Whether the first request has not fully arrived."""
        return not self._finished and not self._ended

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._disarm()
        self._unset_keepalive_if_required()
        if self._watching is not None:
            self._watching.cancel()
        self._ended = True
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Send no more until the client has taken some, and see that it does."""
        super().pause_writing()
        self._watch()

    def _watch(self) -> None:
        if self._watching is None:
            seconds, taken = self._limits.body_timeout, self._joined.taken
            self._watching = self.loop.call_later(seconds, self._look, taken)

    def _look(self, taken: int) -> None:
        self._watching = None
        if self._joined.left and self._joined.taken == taken:
            self._joined.abort()
        elif self._joined.left:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; what cannot be parsed ends the connection."""
        if self._ended:
            return
        self._unset_keepalive_if_required()
        if self._heading and self._timer is None:
            self._arm()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._end(self._fault or WireFault(400, "this is not HTTP/1.1, or its framing is broken"))
        except WireFault as fault:
            self._end(fault)

    def _feed(self, data: bytes) -> None:
        while data:
            if self._skipped:
                data = self._take(data)
                continue
            finished = self._finished
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                continue
            if self._heading and self._begun and self._timer is None:
                self._arm()
            if self._heading and finished == self._finished:
                self._head += len(data)
                if self._head > self._limits.max_head:
                    raise self._too_long()
            elif not self._heading:
                self._raw += len(data)
                # Chunk extensions and trailers count too; after an answer the application bounds what it discards.
                if self._raw > 2 * self._limits.max_body + 2**20 and not self.cycle.response_started:
                    raise WireFault(413, f"the body is larger than the limit of {self._limits.max_body} bytes")
            return

    def _take(self, data: bytes) -> bytes:
        """Read the body of a request that offered an upgrade, which the parser leaves to us."""
        part, rest = data[: self._skipped], data[self._skipped :]
        self._skipped -= len(part)
        self.on_body(part)
        if not self._skipped:
            self.on_message_complete()
        return rest

    def on_message_begin(self) -> None:
        """Expect the rest of this head in time."""
        self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers, which come after the body, are dropped."""
        if self._heading:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check size and framing, then start the request."""
        self._disarm()
        try:
            self._check()
        except WireFault as fault:
            self._fault = fault
            raise
        self._heading = False
        if self.url == b"*":  # `OPTIONS *` asks about the server as a whole
            self.url = b"/"
        super().on_headers_complete()
        self._owed += 1
        scope = cast("dict[str, Any]", self.scope)
        scope["modelpack.gone"] = functools.partial(_gone, self.transport, self.cycle)
        scope["modelpack.certified"] = self._certified

    def _check(self) -> None:
        lengths, codings, hosts, size = [], [], 0, len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
            elif name == b"host":
                hosts += 1
        if size > self._limits.max_head:
            raise self._too_long()
        old = self.parser.get_http_version() == "1.0"
        if len(lengths) > 1 or (lengths and codings):
            raise WireFault(400, "the length of the body is given twice")
        if codings and (codings != [b"chunked"] or old):
            raise WireFault(400, "the only transfer coding is 'chunked', once, in HTTP/1.1")
        if hosts > 1 or not (hosts or old):
            raise WireFault(400, "expected exactly one Host header")
        if self.parser.should_upgrade() and (lengths or codings):
            if codings:
                raise WireFault(400, "an upgrade is offered with a chunked body: send it without Upgrade")
            self._skipped = int(lengths[0])

    def on_message_complete(self) -> None:
        """Close the request's body and expect the next request."""
        if self._skipped:
            return
        super().on_message_complete()
        self._heading, self._begun, self._head, self._raw = True, False, 0, 0
        self._finished += 1

    def on_response_complete(self) -> None:
        """Answer what comes next, or, after the last owed answer, what could not be read."""
        self._joined.flush()
        super().on_response_complete()
        self._owed -= 1
        if self._fault and not self._owed:
            self._refuse(self._fault)

    def _end(self, fault: WireFault) -> None:
        """Read no more; answer the fault now, or after the answers before it."""
        self._ended, self._fault = True, fault
        self._disarm()
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:  # broken inside this one's body
            self._owed -= 1
            if self.pipeline:
                self.pipeline.popleft()
            elif cycle.response_started:
                self.transport.close()
            else:
                cycle.disconnected = True
                cycle.message_event.set()
        if not self._owed:
            self._refuse(fault)

    def _refuse(self, fault: WireFault) -> None:
        if self.transport.is_closing():
            return
        self._app.service.metrics.count("native", "unread", fault.status)
        if self._limits.log_requests:
            logs.answered(f"unread: {fault.message}", fault.status, {"protocol": "native", "route": "unread"})
        body = json.dumps({"error": fault.message}).encode()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (fault.status, http.HTTPStatus(fault.status).phrase.encode(), len(body), body)
        )
        self.transport.close()

    def _too_long(self) -> WireFault:
        return WireFault(431, f"the request line and headers exceed {self._limits.max_head} bytes")

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self._limits.head_timeout, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._ended or self.transport.is_closing():
            return
        if self._head == 0 and not self._finished:  # a probe that only connects gets no answer
            self.transport.close()
        else:
            self._end(WireFault(408, f"the headers did not arrive within {self._limits.head_timeout:g} seconds"))


def _gone(transport: asyncio.Transport, cycle: RequestResponseCycle) -> bool:
    """Tell whether a client has left, and let its request know, which then owes it no answer."""
    if transport.is_closing():
        cycle.disconnected = True
    return cycle.disconnected
