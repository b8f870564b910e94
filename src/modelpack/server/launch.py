"""A process that listens, loads, serves, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any, cast

import uvloop

from . import grpc
from .app import App
from .board import BACKLOG, Board, Seat
from .door import HEARING, Door, waiting
from .faults import StartError
from .service import Service
from .wire import Connection, Open

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from .grpc.listener import Listener
    from .settings import Settings

_GOODBYE = 0.5  # seconds that clients get to end TLS as it should end
_TICK = 0.1  # seconds
_FLUSHING = 0.01  # seconds in which the last connections come to their end
_LOOKING = 10  # ticks
_log = logging.getLogger("modelpack.server")


class Server:
    """Answers while its model loads, and drains before it stops.

    SIGTERM: readiness turns 503 and connections close after their answers, new work is still served for the drain
    delay, then what is in flight finishes. Ctrl-C does the same without the delay. A second signal ends it at once.
    SIGHUP reads the directory of the models again.

    Args:
        app: What answers.
        listener: The socket, which is closed at the end.
        seat: Its place among several workers; None for the only process. Signals may be blocked until it runs.

    Attributes:
        signal: The one that asked for the end.
        failure: Why the model cannot be served.
    """

    def __init__(self, app: App, listener: socket.socket, seat: Seat | None = None) -> None:
        self.app = app
        self._listener, self._seat = listener, seat
        self.signal = 0
        self.failure: Exception | None = None
        self._open = Open()
        self._doors: list[Door | asyncio.Server] = []
        self._stop_at: float | None = None
        self._ending = asyncio.Event()  # it is time to stop
        self._forced = asyncio.Event()  # nobody is waited for
        self._grpc: Listener | None = None
        self._loading: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until a signal, or until the model cannot be served."""
        self._hear()
        self._tick(0)
        if self._seat is not None:
            self._following = asyncio.create_task(self._try(self.app.service.catalog.follow()))
        await self._start()
        await self._ending.wait()
        await self._stop()

    async def _start(self) -> None:
        """Listen first, so that probes get answers, then load; who stands in for a worker that died loads first."""
        late = self._seat is not None and self._seat.late
        if late:
            await self._try(self.app.service.load())
            if self.failure:
                return
        await self._listen()
        service = self.app.service
        if service.settings.grpc_port is not None:
            try:
                self._grpc = await grpc.listen(service, service.settings.grpc_port)
            except StartError as error:
                self._fail(error)
                return
        if not late:
            self._loading = asyncio.create_task(self._try(service.load()))

    async def _listen(self) -> None:
        service = self.app.service
        if self._seat is None and service.tls is None:
            loop = asyncio.get_running_loop()
            self._doors.append(await loop.create_server(self._connection, sock=self._listener, backlog=BACKLOG))
            return
        seat, most = self._seat or Seat(Board(), 0, alive=-1, late=False), service.settings.max_connections
        door = Door(self._listener, seat, self._greet, lambda: len(self._open.connections), most)
        door.open()
        self._doors.append(door)

    def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        if not os.isatty(0):  # a terminal that hangs up ends what runs in it
            loop.add_signal_handler(signal.SIGHUP, self._refresh)
        if self._seat is not None:
            loop.add_reader(self._seat.alive, self._orphaned)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _orphaned(self) -> None:
        """End like a server that was told to: nobody is there to tell it."""
        asyncio.get_running_loop().remove_reader(cast("Seat", self._seat).alive)
        self._end(signal.SIGTERM)

    def _refresh(self) -> None:
        self._refreshing = asyncio.create_task(self.app.service.refresh())

    async def _try(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a server that will never be ready must end, whatever the reason
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self._ending.set()

    def _end(self, number: int) -> None:
        """Begin to drain; on a second signal, stop waiting."""
        if self._stop_at is not None:
            self._forced.set()
            self._ending.set()
            return
        self.signal = number
        delay = self.app.service.settings.drain_delay if number == signal.SIGTERM else 0.0
        self._stop_at = time.monotonic() + delay
        self.app.service.drain()
        if not delay:
            self._ending.set()

    def _tick(self, count: int) -> None:
        """Show other workers how this one is, look for new certificates, end when the drain delay is over."""
        self.app.service.metrics.refresh()
        if self._seat is not None:
            self._seat.board.beat(self._seat.number)
        for door in self._doors:
            if isinstance(door, Door):
                door.tell()
        if self.app.service.tls and count % _LOOKING == 0:
            self.app.service.tls.follow()
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._ending.set()
        asyncio.get_running_loop().call_later(_TICK, self._tick, count + 1)

    async def _greet(self, connection: socket.socket) -> None:
        """Speak with whoever has connected, after a handshake where there is TLS."""
        loop, service = asyncio.get_running_loop(), self.app.service
        try:
            if service.tls is None:
                await loop.connect_accepted_socket(self._connection, connection)
            else:
                seconds = service.settings.head_timeout
                await loop.connect_accepted_socket(
                    self._connection, connection, ssl=service.tls.context,
                    ssl_handshake_timeout=seconds, ssl_shutdown_timeout=_GOODBYE,
                )  # fmt: skip
        except OSError as error:
            refused = getattr(error, "verify_message", "")  # the client is told nothing: only the log has the reason
            _log.log(
                logging.WARNING if refused else logging.DEBUG, "a connection came to nothing: %s", refused or error
            )

    def _connection(self) -> Connection:
        return Connection(self.app, self.app.service, self._open)

    async def _stop(self) -> None:
        """Stop listening, hear out the connections that have not said anything yet, then let the rest end.

        Closing a socket over a request that is on its way resets it, so the queue of connections is made as short as
        it can be before it is closed, and whoever was accepted from it still gets an answer.
        """
        if self._doors:
            self._listener.listen(0)
            await asyncio.sleep(0.02)
        queued: list[socket.socket] = []
        for door in self._doors:
            if isinstance(door, Door):
                queued += door.close()
            else:
                queued += waiting(self._listener)
                door.close()
        greeting = [asyncio.create_task(self._greet(connection)) for connection in queued]
        self._listener.close()
        for door in self._doors:
            if isinstance(door, Door):
                await door.wait_closed()
        if greeting:
            await asyncio.wait(greeting, timeout=HEARING)
        await self._until(lambda: not any(connection.fresh for connection in self._open.connections), HEARING)
        seconds = self.app.service.settings.drain_timeout
        ending = [self._grpc.stop(seconds)] if self._grpc else []
        await asyncio.gather(self._finish(seconds), *ending)

    async def _finish(self, seconds: float) -> None:
        """Let what is in flight end in this time, then answer the rest that it did not."""
        for connection in list(self._open.connections):
            connection.shutdown()
        await self._until(lambda: not (self._open.connections or self._open.tasks), seconds)
        if unfinished := list(self._open.tasks):
            _log.error("%d requests were not done in time, and are told so", len(unfinished))
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=HEARING)
            await self._until(lambda: not self._open.connections, HEARING)
        for connection in list(self._open.connections):  # whose clients take no answer, or never stop sending
            connection.cut()
        await asyncio.sleep(_FLUSHING)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait for something, so long at most, and not when the end is forced."""
        end = time.monotonic() + seconds
        while not (done() or self._forced.is_set()) and time.monotonic() < end:
            await asyncio.sleep(0.01)


def launch(
    settings: Settings, listener: socket.socket, card: Mapping[str, Any] | None = None, seat: Seat | None = None
) -> int:
    """Serve in this process until a signal.

    Args:
        settings: The limits.
        listener: The socket, which is closed at the end.
        card: The model card; None reads `card.json`, where there is one.
        seat: This process's place among several workers.

    Returns:
        0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        StartError: When the model cannot be served.
    """
    place = (seat.board, seat.number) if seat else ()
    app = App(Service(settings, card, *place))
    server = Server(app, listener, seat)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.run())
    app.service.close()
    if server.failure is not None:
        raise server.failure
    _log.info("stopped")
    return 130 if server.signal == signal.SIGINT else 0
