"""HTTP/1.1 on the socket: connections, their requests in turn, and the time that clients may take."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from . import heads, logs
from .exchange import Response, as_json
from .heads import WireFault
from .inlet import Inlet
from .outlet import Outlet
from .patience import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .request import Request
    from .service import Service

_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 * 2**20  # for what a client still sends behind its last answer
_log = logging.getLogger("modelpack.server")


class Open:
    """What a server has open: connections, and the requests that are being answered."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()


class Connection(asyncio.Protocol):
    """One connection.

    1. A request line with its headers has a limit of bytes (431) and of seconds (408).
    2. Framing that two parsers could read differently is refused: two lengths, a length beside chunks, unknown codings.
    3. Bytes that are no request are answered after the answers that are owed for the requests before them.
    4. An offer to upgrade is ignored, and the body that follows it is still a body.
    5. After a last answer, what the client still sends is heard and dropped, be it the rest of a body, broken bytes or
       requests: a socket that is closed over unread bytes is reset, and the client would not see its answer.
    6. Whoever takes nothing of an answer for as long as a body may take to arrive is cut off.

    Args:
        answering: Answers one request.
        service: What has the limits and the figures.
        opened: All that is open; this connection adds itself, and its requests.

    Attributes:
        limits: The server's.
        patience: How long a body may take.
        certified: Whether the client has shown a certificate, which was found good.
        held: Whether what the client sends waits outside.
    """

    def __init__(
        self, answering: Callable[[Request], Coroutine[None, None, None]], service: Service, opened: Open
    ) -> None:
        self._answer, self._metrics, self._open = answering, service.metrics, opened
        self.limits, self.patience = service.settings, service.patience
        self._inlet = Inlet(self)
        self._owed: deque[Request] = deque()  # requests without their answer
        self._answering = False  # the first of them; if not, the client must take other answers before
        self._fault: WireFault | None = None  # what could not be read; the last to be answered
        self._ended = self._last = False  # no more is read; the next answer is the last
        self._timed = True  # whether the time of a head runs
        self._lingering = 0  # bytes that may still come behind the last answer
        self.held = self._full = False  # `_full`: the client is slow to take answers
        self._deadline = Deadline(self._late)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, or refuse one connection too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._outlet = Outlet(self._transport, self.limits.body_timeout)
        self.certified = bool(transport.get_extra_info("peercert"))
        self._open.connections.add(self)
        if len(self._open.connections) > self.limits.max_connections:
            self._end(WireFault(503, f"{self.limits.max_connections} connections are open already: try again later"))
            self._outlet.close()  # at once, or those that wait for nothing would keep others out
        else:
            self._deadline.set(self.limits.head_timeout)

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "https" if self._transport.get_extra_info("sslcontext") else "http"

    @property
    def client(self) -> str:
        """The address at the other end."""
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if isinstance(address, tuple) else ""

    @property
    def fresh(self) -> bool:
        """Whether the first request has not fully arrived, or the head of another is on its way."""
        return not self._ended and (self._inlet.begun or not self._inlet.finished)

    @property
    def closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Let go of what is left."""
        self._open.connections.discard(self)
        self._ended = True
        self._deadline.drop()
        self._outlet.drop()
        self._forget()
        self._inlet.drop()
        self._fault = None  # a fault remembers where it came from

    def shutdown(self) -> None:
        """Close, after the answer that is owed."""
        self._last = True
        if not self._owed and not self._lingering:
            self._outlet.close()

    def cut(self) -> None:
        """Close now, whatever has not been said."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, or drop what comes behind the last answer."""
        if self._lingering:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self._outlet.close()
                return
        if not self._ended:
            self._read(data)

    def _read(self, data: bytes = b"") -> None:
        """Parse what arrived, after what had to wait; what cannot be parsed ends the connection."""
        try:
            self._inlet.feed(data)
        except WireFault as fault:
            self._end(fault)
            return
        if self._inlet.begun and not (self._timed or self.held):
            self._timed = True
            self._deadline.set(self.limits.head_timeout)

    def take(self, request: Request) -> None:
        """Answer a request whose head has arrived, or let it wait for those before it."""
        if self._ended:  # it came behind the last answer
            return
        self._timed = False
        self._deadline.clear()
        self._owed.append(request)
        if len(self._owed) == 1:
            self._start()
        else:
            self.hold()

    def heard(self) -> None:
        """End: the client has sent everything behind its last answer."""
        self._ended = True
        self._outlet.close()

    def hold(self) -> None:
        """Let what else the client sends wait outside."""
        if not (self.held or self.closing):
            self.held = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self.held or self.closing:
            return
        self.held = False
        if not self._ended:
            self._read()
        if not (self.held or self.closing):
            self._transport.resume_reading()

    def invite(self, *, asked: bool) -> None:
        """Read on for the request that is being answered.

        Args:
            asked: Whether its client waits to be told so.
        """
        if asked and not self.closing:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume()

    def _start(self) -> None:
        """Have the first request answered, when the client takes answers."""
        if self._answering or self._full:
            return
        self._answering = True
        task = asyncio.get_running_loop().create_task(self._work(self._owed[0]))
        self._open.tasks.add(task)

    async def _work(self, request: Request) -> None:
        try:
            await self._answer(request)
        except Exception:  # noqa: BLE001 - whatever failed, the client is not left waiting
            _log.exception("a connection was closed over a fault of the server")
            self._transport.abort()
        finally:
            self._open.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def answer(self, request: Request, response: Response, *, close: bool) -> None:
        """Send an answer and turn to the next request.

        Args:
            request: Which was being answered; nothing is sent when it was taken back, or its client has left.
            response: The answer.
            close: Whether it is the connection's last.
        """
        if not (self._owed and self._owed[0] is request) or self.closing:
            return
        last = close or self._last or not (request.lasting and request.ended)
        head = heads.answer(response, request.id, close=last)
        self._owed.popleft()
        self._answering, request.answered = False, True
        self._outlet.send(head, b"" if request.method == "HEAD" else response.body)
        if not request.ended:
            self._linger()
        elif not last:
            self._go_on()
        elif self.held:
            self._ended = True
            self._forget()
            self._outlet.finish()
            self._linger()
        else:
            self._outlet.close()

    def _go_on(self) -> None:
        if self._owed:
            self._start()
        elif self._fault:
            self._refuse(self._fault)
            return
        elif not self._inlet.begun:
            self._deadline.set(self.limits.idle_timeout)
        if len(self._owed) <= 1:
            self._resume()

    def _forget(self) -> None:
        for request in self._owed:
            request.lose()
        self._owed.clear()

    def _linger(self) -> None:
        self._lingering = _LINGER_BYTES
        self._deadline.set(_LINGER_SECONDS)
        self._resume()

    def _end(self, fault: WireFault) -> None:
        """Read no more; answer the fault now, or after the answers before it."""
        if self._ended:  # it came behind the last answer
            return
        self._ended, self._fault = True, fault
        self._deadline.clear()
        if (broken := self._inlet.reading) is None:
            pass
        elif broken.answered:
            self._outlet.close()
        else:
            self._owed.remove(broken)
            broken.lose()
        if not self._owed:
            self._refuse(fault)

    def _refuse(self, fault: WireFault) -> None:
        if self.closing:
            return
        self._metrics.count("native", "unread", fault.status)
        if self.limits.log_requests:
            logs.answered(f"unread: {fault.message}", fault.status, {"protocol": "native", "route": "unread"})
        response = as_json({"error": fault.message}, fault.status)
        self._outlet.send(heads.answer(response, "", close=True), response.body)
        self._outlet.finish()
        self._linger()

    def pause_writing(self) -> None:
        """Answer no more until the client has taken some, and see that it does."""
        self._full = True
        self._outlet.watch()

    def resume_writing(self) -> None:
        """Answer what has come meanwhile."""
        self._full = False
        if self._owed and not self.closing:
            self._start()

    def _late(self) -> None:
        if self._inlet.begun and not self._ended:
            self._end(WireFault(408, f"the headers did not arrive within {self.limits.head_timeout:g} seconds"))
        else:  # idle, or lingering, or a probe that only connects
            self._outlet.close()
