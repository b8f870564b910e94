"""What answers are written to: one packet each, and how much of it the client has taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Joined:
    """A transport that sends the head of an answer with the first bytes of its body: one packet and one system call.

    Args:
        transport: The socket's.
        held: Is called when it is closed while the client has not taken everything.
    """

    def __init__(self, transport: asyncio.Transport, held: Callable[[], None]) -> None:
        self._transport, self._head, self._held, self._sent = transport, b"", held, 0
        self.abort = transport.abort
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        """Send, or hold the head of an answer whose body follows in the same step of the event loop.

        Nothing is sent to a client that has left: the event loop would raise.
        """
        if self.is_closing():
            self._head = b""
        elif not self._head and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and data[9:12] != b"100":
            self._head = data
        else:
            whole, self._head = self._head + data, b""
            self._sent += len(whole)
            self._transport.write(whole)

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Send what is held, then close."""
        self.flush()
        self._transport.close()
        if self.left:
            self._held()

    @property
    def left(self) -> int:
        """How many bytes the client has not taken, nor the kernel for it."""
        return self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """How many bytes the client has taken, or the kernel for it."""
        return self._sent - self.left
