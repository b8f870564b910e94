"""A process that listens, loads, serves, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from . import grpc
from .app import App
from .board import Board, Seat
from .door import HEARING, Door
from .faults import StartError
from .service import Service
from .wire import Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from .grpc.listener import Listener
    from .settings import Settings

_GOODBYE = 0.5  # seconds that clients get to end TLS as it should end
_LOOKING = 10  # ticks, of 0.1 seconds
_log = logging.getLogger("modelpack.server")


class Server(uvicorn.Server):
    """A uvicorn server that answers while its model loads, and drains before it stops.

    SIGTERM: readiness turns 503 and connections close after their answers, new work is still served for the drain
    delay, then what is in flight finishes. Ctrl-C does the same without the delay. A second signal ends it at once.
    SIGHUP reads the directory of the models again.

    Args:
        app: What answers.
        config: For uvicorn.
        seat: Its place among several workers, whose signals are still blocked; None for the only process.
    """

    def __init__(self, app: App, config: uvicorn.Config, seat: Seat | None = None) -> None:
        super().__init__(config)
        self.app = app
        self._seat = seat
        self.signal = 0
        self.failure: Exception | None = None
        self._doors: list[Door] = []
        self._stop_at: float | None = None
        self._grpc: Listener | None = None
        self._loading: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen first, so that probes get answers, then load; who stands in for a worker that died loads first."""
        self._hear()
        late = self._seat is not None and self._seat.late
        if late:
            await self._load()
            if self.failure:
                return
        await self._listen(sockets or [])
        service = self.app.service
        if service.settings.grpc_port is not None:
            try:
                self._grpc = await grpc.listen(service, service.settings.grpc_port)
            except StartError as error:
                self.failure, self.should_exit = error, True
                return
        if not late:
            self._loading = asyncio.create_task(self._load())

    async def _listen(self, sockets: list[socket.socket]) -> None:
        service = self.app.service
        if self._seat is None and service.tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        seat, most = self._seat or Seat(Board(), 0, alive=-1, late=False), service.settings.max_connections
        for listener in sockets:
            door = Door(listener, seat, self._greet, lambda: len(self.server_state.connections), most)
            door.open()
            self._doors.append(door)
        self.servers += self._doors  # type: ignore[arg-type] # they are closed like any other

    def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        if not os.isatty(0):  # a terminal that hangs up ends what runs in it
            loop.add_signal_handler(signal.SIGHUP, self._refresh)
        if self._seat is not None:
            loop.add_reader(self._seat.alive, self._orphaned)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _orphaned(self) -> None:
        """End like a server that was told to: nobody is there to tell it."""
        asyncio.get_running_loop().remove_reader(cast("Seat", self._seat).alive)
        self.handle_exit(signal.SIGTERM, None)

    def _refresh(self) -> None:
        self._refreshing = asyncio.create_task(self.app.service.refresh())

    async def _load(self) -> None:
        try:
            await self.app.service.load()
        except Exception as error:  # noqa: BLE001 - a server that will never be ready must end, whatever the reason
            self.failure = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to drain; on a second signal, stop waiting."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        self.signal = sig
        delay = self.app.service.settings.drain_delay if sig == signal.SIGTERM else 0.0
        self._stop_at = time.monotonic() + delay
        self.app.service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop when the drain delay is over, show other workers the figures of this one, look for new certificates."""
        self.app.service.metrics.refresh()
        for door in self._doors:
            door.tell()
        if self.app.service.tls and counter % _LOOKING == 0:
            self.app.service.tls.follow()
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def _greet(self, connection: socket.socket) -> None:
        """Speak with whoever has connected, after a handshake where there is TLS."""
        loop, service = asyncio.get_running_loop(), self.app.service
        try:
            if service.tls is None:
                await loop.connect_accepted_socket(self._protocol, connection)
            else:
                seconds = service.settings.head_timeout
                await loop.connect_accepted_socket(
                    self._protocol, connection, ssl=service.tls.context,
                    ssl_handshake_timeout=seconds, ssl_shutdown_timeout=_GOODBYE,
                )  # fmt: skip
        except OSError as error:
            refused = getattr(error, "verify_message", "")  # the client is told nothing: only the log has the reason
            _log.log(
                logging.WARNING if refused else logging.DEBUG, "a connection came to nothing: %s", refused or error
            )

    def _protocol(self) -> Protocol:
        return Protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, hear out the connections that have not said anything yet, then let uvicorn end the rest.

        Closing a socket over a request that is on its way resets it, so the queue of connections is made as short as
        it can be before it is closed, and whoever was accepted from it still gets an answer.
        """
        for listener in sockets or []:
            listener.listen(0)
        await asyncio.sleep(0.02)
        queued = [connection for listener in sockets or [] for connection in _accept(listener)]
        for server in self.servers:
            server.close()
        for door in self._doors:
            await door.wait_closed()
        greeting = [asyncio.create_task(self._greet(connection)) for connection in queued]
        if greeting:
            await asyncio.wait(greeting, timeout=HEARING)
        end = time.monotonic() + HEARING
        while time.monotonic() < end and any(_fresh(connection) for connection in self.server_state.connections):
            await asyncio.sleep(0.01)
        ending = [self._grpc.stop(self.app.service.settings.drain_timeout)] if self._grpc else []
        await asyncio.gather(super().shutdown(sockets), *ending)


def _accept(listener: socket.socket) -> Iterator[socket.socket]:
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection


def _fresh(connection: object) -> bool:
    return isinstance(connection, Protocol) and connection.fresh


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
    server = Server(app, _config(app), seat)
    server.run(sockets=[listener])
    app.service.close()
    if server.failure is not None:
        raise server.failure
    _log.info("stopped")
    return 130 if server.signal == signal.SIGINT else 0


def _config(app: App) -> uvicorn.Config:
    settings = app.service.settings
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        workers=1,
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=settings.drain_timeout,
    )
