"""Connections from a socket that several workers share, so that each gets as many as the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

from .board import BACKLOG

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator

    from .board import Seat

HEARING = 0.5
"""Seconds that a server which ends gives to clients that have connected and asked nothing yet."""
_DEFERRING, _FULL = 0.001, 1.0  # seconds
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door:
    """Takes one connection at a time, and leaves it to a worker that has fewer open; stands for an asyncio server.

    The kernel wakes all workers for a connection and tends to let the same one have it. Whoever has more than another
    looks away for a moment, and takes it after all if nobody did.

    Args:
        listener: The socket.
        seat: This worker's, where each tells how many connections it has.
        greet: Shakes hands, where that is needed, and lets a protocol speak.
        count: Tells how many are open here.
        most: How many may be greeted at once.
    """

    def __init__(
        self,
        listener: socket.socket,
        seat: Seat,
        greet: Callable[[socket.socket], Coroutine[None, None, None]],
        count: Callable[[], int],
        most: int,
    ) -> None:
        self._listener, self._seat, self._greet, self._count, self._most = listener, seat, greet, count, most
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        self._tasks: set[asyncio.Task[object]] = set()

    def open(self) -> None:
        """Take connections from now on."""
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._open = True
        self.tell()
        self._loop.add_reader(self._listener, self._welcome)

    def tell(self) -> None:
        """Let the others see how many connections are open here."""
        if self._open:
            self._seat.board.connections[self._seat.number] = float(self._count())

    def close(self) -> list[socket.socket]:
        """Take none any more, and give those that still waited; what comes between the two steps is reset.

        The last worker that closes leaves nobody waiting at a socket that none answers.
        """
        if not self._open:
            return []
        self._open = False
        self._seat.board.connections[self._seat.number] = float("inf")
        self._look_away(None)
        found = list(waiting(self._listener))
        self._listener.close()
        return found

    async def wait_closed(self) -> None:
        """Wait for those that were just taken, unless they are slow to say who they are."""
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=HEARING)
            for task in slow:
                task.cancel()

    def _welcome(self) -> None:
        counts = self._seat.board.connections
        if counts[self._seat.number] > min(counts):
            self._look_away(_DEFERRING)
        else:
            self._take()

    def _look_away(self, seconds: float | None) -> None:
        """Let others have what waits, for some time or for ever."""
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._welcome)
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # most often another worker was faster
            if error.errno in _EXHAUSTED:
                self._look_away(_FULL)
            return
        if len(self._tasks) >= self._most:
            connection.close()
            return
        connection.setblocking(False)
        self._seat.board.connections[self._seat.number] += 1.0
        task = self._loop.create_task(self._greet(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Take the connections that wait in a socket's queue."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection
