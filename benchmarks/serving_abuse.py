"""Clients that behave badly: seeded, endless, and each of one kind that its name tells."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

END = ("close", "half", "reset", "wait")
"""How a client leaves: at once; when it has said all; without a goodbye; when the server does, or after a while."""
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_HOST = b"Host: a\r\n"
_NUMBERS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e400", "1e39", "1e-400", "9" * 400, "-0", "01", ".5", "0x10", "1_0",
    "18446744073709551616", "-9223372036854775809", "1e5", "true", "false", "null", '"1"', '"NaN"', "[]", "{}",
)  # fmt: skip
_WORDS = (
    "instances", "inputs", "data", "input_data", "dataframe_split", "dataframe_records", "columns", "index", "params",
    "signature_name", "parameters", "outputs", "id", "name", "shape", "datatype", "x", "ids", "mask", "input", "b64",
)  # fmt: skip
_MEDIA = (
    "application/json", "application/octet-stream", "application/x-npy", "text/csv", "application/jsonlines",
    "text/plain", "image/jpeg", "", "*/*", "application/json; charset=utf-16", "application/json;" * 50,
    "application/vnd.vertex-ai-triton.binary+json;json-header-size=7",
)  # fmt: skip


@dataclass(frozen=True)
class Abuse:
    """What one client does: pieces of bytes, seconds between them, and how it leaves."""

    kind: str
    pieces: Sequence[bytes]
    pause: float = 0.0
    end: str = "half"

    def play(self, port: int, patience: float = 60.0) -> list[int]:
        """Do it, and give the statuses of the server's answers.

        Raises:
            TimeoutError: When the server neither answers nor closes, where it has to.
        """
        received = b""
        connection = socket.create_connection(("127.0.0.1", port), timeout=patience)
        with connection, contextlib.suppress(ConnectionError):
            for number, piece in enumerate(self.pieces):
                if number and self.pause:
                    time.sleep(self.pause)
                connection.sendall(piece)
            if self.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.end in ("close", "reset"):
                return []
            if self.end == "half":
                with contextlib.suppress(OSError):  # the server may have left first
                    connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        return [int(status) for status in _STATUS.findall(received)]


def abuses(seed: int, routes: Sequence[str], *, limit: int = 100_000) -> Iterator[Abuse]:
    """Give one after the other, for ever.

    Args:
        seed: The same one gives the same.
        routes: Paths that take POST.
        limit: Bytes that the server takes in a body.
    """
    draw = random.Random(seed)
    while True:
        kind = draw.choice(KINDS)
        yield kind(draw, draw.choice(routes), limit)


def post(path: str, body: bytes, media: str = "application/json", more: bytes = b"") -> bytes:
    """Write a request that is as it should be."""
    head = f"POST {path} HTTP/1.1\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n".encode()
    return head + _HOST + more + b"\r\n" + body


def _value(draw: random.Random, depth: int = 0) -> str:
    pick = draw.random()
    if pick < 0.45 or depth > 4:
        return draw.choice(_NUMBERS) if draw.random() < 0.5 else repr(draw.uniform(-9, 9))
    if pick < 0.8:
        return "[" + ",".join(_value(draw, depth + 1) for _ in range(draw.randrange(6))) + "]"
    if pick < 0.95:
        names = draw.sample(_WORDS, draw.randrange(4))
        return "{" + ",".join(f'"{name}":{_value(draw, depth + 1)}' for name in names) + "}"
    return json.dumps(
        "".join(chr(draw.choice((0, 34, 92, 0xFFFD, 0x1F600, 0x7F, 65))) for _ in range(draw.randrange(5)))
    )


def _rows(draw: random.Random, width: int = 4) -> str:
    """Rows that are nearly right: ragged, of wrong types, with numbers that are none."""
    rows = []
    for _ in range(draw.randrange(4)):
        cells = [repr(draw.uniform(-1, 1)) for _ in range(width + draw.choice((0, 0, 0, -1, 1)))]
        if cells and draw.random() < 0.5:
            cells[draw.randrange(len(cells))] = draw.choice(_NUMBERS)
        rows.append("[" + ",".join(cells) + "]")
    return "[" + ",".join(rows) + "]"


def json_values(draw: random.Random, path: str, _limit: int) -> Abuse:
    """JSON with NaN, ragged rows, huge numbers, wrong types, unknown keys, or none at all."""
    pick = draw.random()
    if pick < 0.4:
        body = f'{{"{draw.choice(_WORDS)}": {_rows(draw)}}}'
    elif pick < 0.6:
        datatype = draw.choice(("FP32", "INT64", "BYTES", "X"))
        tensor = f'{{"name":"x","shape":{_value(draw)},"datatype":"{datatype}","data":{_rows(draw)}}}'
        body = f'{{"inputs":[{tensor}],"{draw.choice(_WORDS)}":{_value(draw)}}}'
    elif pick < 0.65:
        body = "[" * draw.choice((10, 500, 20_000)) + "1"
    else:
        body = _value(draw)
    return Abuse("values", [post(path, body.encode("utf-8", "surrogatepass"), draw.choice(_MEDIA[:1] * 12 + _MEDIA))])


def binary(draw: random.Random, path: str, _limit: int) -> Abuse:
    """Tensors whose header and bytes disagree."""
    shape = draw.choice(("1,4", "0", "-1,4", "4294967296,4294967296", "1,4,", "x", "1" * 500, "1e2", "\u00b2"))
    length = draw.choice(("0", "7", "-1", "99999999999999999999", "0x10", "", "1.5"))
    more = f"X-Shape: {shape}\r\nInference-Header-Content-Length: {length}\r\n".encode()
    body = draw.choice((b"", bytes(16), bytes(15), b'{"inputs":[]}' + bytes(16), draw.randbytes(draw.randrange(200))))
    npy = b"\x93NUMPY\x01\x00" + draw.randbytes(draw.randrange(120))
    media = draw.choice(_MEDIA[1:])
    return Abuse("binary", [post(path, npy if "npy" in media else body, media, more)])


def huge(draw: random.Random, path: str, limit: int) -> Abuse:
    """More than the server takes: bodies, heads, names, numbers of headers, chunks without an end."""
    where = f"POST {path} HTTP/1.1\r\n".encode() + _HOST
    chunk = b"%x\r\n%s\r\n" % (limit // 3, bytes(limit // 3))
    pieces: list[bytes] = draw.choice((
        [post(path, b"[" + b"1," * limit + b"1]")],
        [where + b"Content-Length: 99999999999999\r\n\r\n", b"x" * 1000],
        [where + b"Content-Length: 9" + b"9" * 200 + b"\r\n\r\n"],
        [where + b"Transfer-Encoding: chunked\r\n\r\n", *([chunk] * 9)],
        [where + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 4 * limit + b"\r\nx\r\n"],
        [where + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"],
        [b"GET /" + b"a" * draw.choice((16_000, 20_000, 70_000)) + b" HTTP/1.1\r\n" + _HOST + b"\r\n"],
        [where + b"X: " + b"v" * 70_000 + b"\r\n\r\n"],
        [where + b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + b"\r\n"],
        [where + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"],
    ))  # fmt: skip
    return Abuse("huge", pieces)


def smuggling(draw: random.Random, path: str, _limit: int) -> Abuse:
    """Framing that two parsers could read differently, with a second request inside."""
    inner = b"GET /livez HTTP/1.1\r\n" + _HOST + b"\r\n"
    framing = draw.choice((
        b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: 0x5\r\n", b"Content-Length: -1\r\n",
        b"Content-Length : 5\r\n", b"Content-Length: 5\n", b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding:\tchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n",
        b"X: y\r\n Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Length: 5\r\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n", b"Host: b\r\nContent-Length: 5\r\n",
    ))  # fmt: skip
    body = draw.choice(
        (b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"-1\r\n", b"5;\r\nhello0\r\n\r\n", b"05 \r\nhello\r\n")
    )
    return Abuse("smuggling", [f"POST {path} HTTP/1.1\r\n".encode() + _HOST + framing + b"\r\n" + body + inner])


def heads(draw: random.Random, path: str, _limit: int) -> Abuse:
    """Request lines and headers that are no HTTP/1.1, or strange parts of it."""
    target = draw.choice((
        path, "*", "//", "/%", "/%00", "/%ff%fe", "/../../etc/passwd", "http://a/livez", "?", "/\x00", "/" + "é" * 9,
        path + "?" + "&" * 500, path * 40,
    ))  # fmt: skip
    method = draw.choice(
        ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "", "P" * 999)
    )
    version = draw.choice(("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.9", "http/1.1", ""))
    header = draw.choice((
        b"", b"Host: b\r\n", b"\x00: y\r\n", b"X\x7f: y\r\n", b": y\r\n", b"X\r\n", b"X: \xff\xfe\r\n",
        b"X: y\r\n  folded\r\n", b"traceparent: 00-0-0-0\r\n", b"X-Request-ID: \x01\x02\r\n", b"Expect: 42\r\n",
        b"Authorization: Bearer \xc3\xa9\r\n", b"Accept: ;q=x,,\r\n", b"Content-Type: \xff\r\n",
        b"Content-Encoding: gzip\r\n", b"Connection: close, keep-alive\r\n",
    ))  # fmt: skip
    other = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50,
        b"\x00" * 100, draw.randbytes(draw.randrange(1, 300)),
    )  # fmt: skip
    line, host = f"{method} {target} {version}\r\n".encode(), draw.choice((_HOST, _HOST, b""))
    return Abuse("heads", [draw.choice(other) if draw.random() < 0.2 else line + host + header + b"\r\n"])


def truncated(draw: random.Random, path: str, _limit: int) -> Abuse:
    """A request that is as it should be, up to where it ends too early."""
    whole = post(path, b'{"instances": [[1, 2, 3, 4]]}')
    if draw.random() < 0.3:
        chunked = whole.replace(b"Content-Length: 29", b"Transfer-Encoding: chunked")
        whole = chunked.replace(b'{"ins', b'1d\r\n{"ins') + b"\r\n0\r\n\r\n"
    return Abuse("truncated", [whole[: draw.randrange(len(whole))]], end=draw.choice(END[:3]))


def pipelined(draw: random.Random, path: str, limit: int) -> Abuse:
    """Several at once, good and bad ones, and perhaps gone before the answers."""
    parts = []
    for _ in range(draw.randrange(2, 8)):
        parts += draw.choice((json_values, binary, smuggling, heads, truncated))(draw, path, limit).pieces
        parts.append(post(path, b'{"instances": [[1, 2, 3, 4]]}'))
    return Abuse("pipelined", [b"".join(parts)], end=draw.choice(END[:3]))


def slow(draw: random.Random, path: str, _limit: int) -> Abuse:
    """A request that comes in drops, and perhaps never ends."""
    whole = post(path, b'{"instances": [[1, 2, 3, 4]]}', more=b"Connection: close\r\n")
    cuts = sorted(draw.sample(range(len(whole)), draw.randrange(2, 6)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    if draw.random() < 0.5:
        pieces = pieces[:-1]
    return Abuse("slow", pieces, pause=0.005, end=draw.choice(END))


KINDS: tuple[Callable[[random.Random, str, int], Abuse], ...] = (
    json_values, json_values, json_values, binary, huge, smuggling, heads, truncated, pipelined, slow,
)  # fmt: skip


def wrong(statuses: Sequence[Any]) -> list[Any]:
    """Give the statuses that no client may ever cause."""
    return [status for status in statuses if status >= 500 and status not in (503, 504)]
