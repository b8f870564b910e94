"""JSON and files over a connection between two hosts: each frame is its length, and then a JSON object."""

from __future__ import annotations

import hashlib
import json
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROTOCOL = 1
MOST = 64 * 2**20
"""Bytes of a frame at most; a stranger that speaks another language asks for more."""
_CHUNK = 2**20
_QUIET = 15
"""Seconds after which the system asks a silent host whether it is still there."""


@dataclass
class Wire:
    """One end of a connection.

    Attributes:
        link: The connection.
        peer: What the other host is called in messages.
        wait: Seconds to wait for what must come.
    """

    link: socket.socket
    peer: str
    wait: float
    _held: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.link.settimeout(self.wait)
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", _QUIET), ("TCP_KEEPINTVL", _QUIET // 3), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                self.link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **body: Any) -> None:
        """Send a frame.

        Raises:
            StageError: When the other host is gone.
        """
        data = json.dumps(body, default=str).encode()
        try:
            self.link.sendall(struct.pack(">I", len(data)) + data)
        except OSError as error:
            raise self.gone(error) from error

    def give(self, path: Path) -> None:
        """Send a file's bytes; the other end knows how many."""
        with path.open("rb") as stream:
            try:
                self.link.sendfile(stream)
            except OSError as error:
                raise self.gone(error) from error

    def take(self, path: Path, size: int) -> str:
        """Write the next `size` bytes to a new file, and give their SHA-256."""
        seen = hashlib.sha256()
        with path.open("xb") as stream:
            while size:
                part = self._read(min(size, _CHUNK))
                seen.update(part)
                stream.write(part)
                size -= len(part)
        return seen.hexdigest()

    def receive(self, wait: float | None = None) -> dict[str, Any]:
        """Wait for a frame.

        Args:
            wait: Seconds; the connection's own when None.

        Raises:
            StageError: When none comes, the other host is gone, or what comes is no frame.
        """
        deadline = time.monotonic() + (self.wait if wait is None else wait)
        while (frame := self._frame()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not self._ready(left):
                raise StageError(f"{self.peer} does not answer")
            self._more()
        return frame

    def arrived(self) -> Iterator[dict[str, Any]]:
        """Give the frames that have come, without waiting.

        Raises:
            StageError: When the other host is gone.
        """
        while self._ready(0):
            self._more()
            while (frame := self._frame()) is not None:
                yield frame
        while (frame := self._frame()) is not None:
            yield frame

    def close(self) -> None:
        """End the connection; the other host notices."""
        self.link.close()

    def gone(self, error: OSError | None = None) -> StageError:
        """Say that the other host has left."""
        why = f" ({error.strerror or error})" if error is not None else ""
        return StageError(f"{self.peer} is gone{why}", then="look there for what ended it")

    def _ready(self, wait: float) -> bool:
        return bool(select.select([self.link], [], [], wait)[0])

    def _more(self) -> None:
        try:
            data = self.link.recv(_CHUNK)
        except OSError as error:
            raise self.gone(error) from error
        if not data:
            raise self.gone()
        self._held += data

    def _read(self, most: int) -> bytes:
        while not self._held:
            if not self._ready(self.wait):
                raise StageError(f"{self.peer} does not answer")
            self._more()
        part = bytes(self._held[:most])
        del self._held[:most]
        return part

    def _frame(self) -> dict[str, Any] | None:
        if len(self._held) < 4:
            return None
        (length,) = struct.unpack(">I", self._held[:4])
        if length > MOST:
            raise StageError(f"{self.peer} speaks another language", then="is another program behind this port?")
        if len(self._held) < 4 + length:
            return None
        data = bytes(self._held[4 : 4 + length])
        del self._held[: 4 + length]
        try:
            body = json.loads(data)
        except ValueError as error:
            raise StageError(f"{self.peer} speaks another language: {error}") from error
        if not isinstance(body, dict):
            raise StageError(f"{self.peer} sent no JSON object")
        return body
