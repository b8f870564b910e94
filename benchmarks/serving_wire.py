"""Clients that cost little: HTTP/1.1 on plain sockets, one connection or many at once from one thread."""

from __future__ import annotations

import re
import selectors
import socket
import time
from typing import Self

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def post(path: str, body: bytes, media: str = "application/json", **headers: object) -> bytes:
    """Write a request."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


class Answer:
    """One answer as it arrives; answers must say their length."""

    def __init__(self) -> None:
        self._data, self._whole = b"", -1
        self._body = 0

    def take(self, data: bytes) -> bool:
        """Add what arrived, and say whether that is all."""
        self._data += data
        if self._whole < 0 and (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._data, 0, end + 2)
            if not found:
                raise ValueError(f"no length in {self._data[:end]!r}")
            self._body = end + 4
            self._whole = self._body + int(found[1])
        return len(self._data) == self._whole

    @property
    def status(self) -> int:
        """Its status."""
        return int(self._data[9:12])

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection behind it."""
        return b"\r\nconnection: close\r\n" in self._data[: self._body].lower()

    @property
    def body(self) -> bytes:
        """Its body."""
        return self._data[self._body :]


class Wire:
    """One connection, which is kept from request to request."""

    def __init__(self, port: int, timeout: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            ConnectionError: When the connection ends before the answer does.
        """
        self.socket.sendall(request)
        answer = Answer()
        while data := self.socket.recv(262144):
            if answer.take(data):
                return answer
        raise ConnectionResetError("the connection ended before its answer")

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and give status and body of its answer."""
        answer = self.ask(request)
        return answer.status, answer.body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def load(port: int, request: bytes, count: int, clients: int) -> list[float]:
    """Let clients ask at once, each its next when its last is answered; give the seconds that each answer took.

    Raises:
        RuntimeError: When an answer is not 200.
    """
    taken: list[float] = []
    with selectors.DefaultSelector() as selector:
        wires = [Wire(port) for _ in range(clients)]
        left = count - clients
        try:
            for wire in wires:
                selector.register(wire.socket, selectors.EVENT_READ, [time.perf_counter(), Answer()])
                wire.socket.sendall(request)
            while len(taken) < count:
                for key, _ in selector.select(60):
                    state = key.data
                    if not state[1].take(key.fileobj.recv(262144)):
                        continue
                    taken.append(time.perf_counter() - state[0])
                    if state[1].status != 200:
                        raise RuntimeError(f"answered {state[1].status}: {state[1].body[:200]!r}")
                    if left > 0:
                        left -= 1
                        state[:] = [time.perf_counter(), Answer()]
                        key.fileobj.sendall(request)
        finally:
            for wire in wires:
                wire.socket.close()
    return taken


def alone(wire: Wire, request: bytes, count: int) -> list[float]:
    """Ask one after the other; give the seconds that each answer took.

    Raises:
        RuntimeError: When an answer is not 200.
    """
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        status, body = wire.exchange(request)
        taken.append(time.perf_counter() - began)
        if status != 200:
            raise RuntimeError(f"answered {status}: {body[:200]!r}")
    return taken
