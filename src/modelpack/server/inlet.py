"""The way into a connection: bytes become requests, by the parser httptools, strict about framing and with limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from . import heads
from .heads import WireFault
from .request import Request

if TYPE_CHECKING:
    from .request import Link

_PIECE = 2**15  # bytes of requests that are parsed before looking whether the connection wants more of them


class Inlet:
    """Reads what one client sends.

    The parser calls the methods that begin with `on_`.

    Args:
        connection: What takes requests whose heads have arrived, and answers them.

    Attributes:
        reading: The request whose body arrives.
        finished: How many requests have wholly arrived.
    """

    def __init__(self, connection: Link) -> None:
        self._connection, self._limits = connection, connection.limits
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # what follows the last request is dropped
        self._target, self._lines = b"", list[tuple[bytes, bytes]]()  # of the head that arrives
        self._size = 0  # bytes of them
        self._head = self._raw = 0  # bytes of an unfinished head; bytes of an unfinished body as they came
        self._heading = False  # whether the parser is in a head
        self._due = 0  # bytes of an unfinished body that are still to come, where its head says so
        self._skipped = 0  # of them, when the parser leaves them to us
        self._kept = b""  # what waits until the connection wants it
        self._fault: WireFault | None = None
        self.reading: Request | None = None
        self.finished = 0

    @property
    def begun(self) -> bool:
        """Whether a head has begun to arrive, or empty lines before one."""
        return self._heading or self._head > 0

    def drop(self) -> None:
        """Let go of everything, so that nothing of a dead connection waits for the garbage collector."""
        del self._parser, self._connection
        self._fault = self.reading = None

    def feed(self, data: bytes) -> None:
        """Parse what arrived, behind what had to wait; what the connection does not want yet waits here.

        Raises:
            WireFault: When it cannot be a request that this server reads; then nothing more can be parsed.
        """
        try:
            self._feed(data)
        except httptools.HttpParserError:  # it covers what the methods raised that the parser called
            raise self._reason() from None

    def _feed(self, data: bytes) -> None:
        if self._kept:
            data, self._kept = self._kept + data, b""
        while data and not self._connection.held:
            if self._skipped:
                data = self._take(data)
                continue
            piece, finished = data[: self._due + _PIECE], self.finished
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                continue
            data = data[len(piece) :]
            if self.reading is not None:
                self._in_body(self.reading, len(piece))
            elif finished == self.finished:
                self._head += len(piece)
                if self._head > self._limits.max_head:
                    raise self._too_long()
        self._kept = data

    def _in_body(self, request: Request, size: int) -> None:
        """Bound chunk extensions and trailers, too."""
        self._raw += size
        if self._raw > 2 * self._limits.max_body + 2**20 and not request.answered:
            raise WireFault(413, f"the body is larger than the limit of {self._limits.max_body} bytes")

    def _take(self, data: bytes) -> bytes:
        """Read the body of a request that offered an upgrade, which the parser leaves to us."""
        part, rest = data[: self._skipped], data[self._skipped :]
        self._skipped -= len(part)
        self.on_body(part)
        if not self._skipped:
            self.on_message_complete()
        return rest

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._heading, self._target, self._lines, self._size = True, b"", [], 0

    def on_url(self, part: bytes) -> None:
        """Take a piece of the target."""
        self._target += part
        self._grow(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers, which come after the body, are dropped."""
        if self.reading is None:
            self._lines.append((name.lower(), value))
            self._grow(len(name) + len(value) + 4)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.max_head:
            self._fault = self._too_long()  # the parser raises one of its own
            raise self._fault

    def on_headers_complete(self) -> None:
        """Check size and framing, then hand the request over."""
        try:
            self.reading = self._request()
        except WireFault as fault:
            self._fault = fault
            raise
        self._heading, self._head = False, 0
        self._connection.take(self.reading)

    def _request(self) -> Request:
        parser, target, lines = self._parser, self._target, self._lines
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise WireFault(400, f"this is not HTTP/{version}: expected HTTP/1.1")
        length = heads.framed(lines, old=version == "1.0")
        if parser.should_upgrade():
            if length is None:
                raise WireFault(400, "an upgrade is offered with a chunked body: send it without Upgrade")
            self._skipped = length
        self._due = length or 0
        lasting = version != "1.0" and parser.should_keep_alive()
        method = parser.get_method().decode()
        path = heads.path(target) if target != b"*" or method != "OPTIONS" else "/"
        return Request(self._connection, method, path, version, lines, lasting=lasting)

    def on_body(self, body: bytes) -> None:
        """Give the request a piece of its body."""
        if self._due:
            self._due -= len(body)
        if self.reading is not None:
            self.reading.arrive(body)

    def on_message_complete(self) -> None:
        """Know that a request is whole, and expect the next one."""
        if self._skipped or self.reading is None:
            return
        whole, self.reading, self._raw, self._due = self.reading, None, 0, 0
        self.finished += 1
        whole.end()

    def _reason(self) -> WireFault:
        return self._fault or WireFault(400, "this is not HTTP/1.1, or its framing is broken")

    def _too_long(self) -> WireFault:
        return WireFault(431, f"the request line and headers exceed {self._limits.max_head} bytes")
