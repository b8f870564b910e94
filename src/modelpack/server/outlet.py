"""The way out of a connection: answers are sent whole, and whoever takes nothing of them is cut off."""

from __future__ import annotations

import asyncio

_JOINED = 2**16  # bytes of an answer that is copied, to go out with its head in one piece


class Outlet:
    """Sends to one client.

    Args:
        transport: The socket's.
        seconds: How long a client may take nothing of what waits for it.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport, self._seconds = transport, seconds
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, head: bytes, body: bytes) -> None:
        """Send an answer."""
        self._sent += len(head) + len(body)
        if len(body) < _JOINED:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def finish(self) -> None:
        """Tell the client that nothing more is sent; TLS has no word for it."""
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """Close when everything is sent."""
        self._transport.close()
        if self._left:
            self.watch()

    def drop(self) -> None:
        """Forget the clock, after the connection's end."""
        if self._timer is not None:
            self._timer.cancel()

    def watch(self) -> None:
        """See that the client takes some of what waits for it, and then some more, until nothing is left."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look, self._sent - self._left)

    def _look(self, taken: int) -> None:
        self._timer = None
        if self._left and self._sent - self._left == taken:
            self._transport.abort()
        elif self._left:
            self.watch()

    @property
    def _left(self) -> int:
        """How many bytes the client has not taken, nor the kernel for it."""
        return self._transport.get_write_buffer_size()
