"""Heads of HTTP/1.1 messages: what a request's may say, and how an answer's is written.

Source: RFC 9112, "HTTP/1.1".
"""

from __future__ import annotations

import functools
import http
import re
import urllib.parse
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from .exchange import Response

    Lines = list[tuple[bytes, bytes]]

_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class WireFault(Exception):  # noqa: N818 - it becomes an answer
    """The bytes cannot be a request that this server reads."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def framed(lines: Lines, *, old: bool) -> int | None:
    """Give how long a body is, in bytes, or None where its chunks say so.

    Args:
        lines: Names in lower case, and values.
        old: Whether this is HTTP/1.0.

    Raises:
        WireFault: When two servers could disagree on where the request ends, or for whom it is.
    """
    lengths, codings, hosts = [], [], []
    for name, value in lines:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
        elif name == b"host":
            hosts.append(value)
    if len(lengths) > 1 or (lengths and codings):
        raise WireFault(400, "the length of the body is given twice")
    if codings and (codings != [b"chunked"] or old):
        raise WireFault(400, "the only transfer coding is 'chunked', once, in HTTP/1.1")
    if len(hosts) > 1 or not (hosts or old):
        raise WireFault(400, "expected exactly one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise WireFault(400, "the Host header names no host")
    return None if codings else int(lengths[0]) if lengths else 0


@functools.lru_cache(64)
def path(target: bytes) -> str:
    """Give the path that a request's target names, decoded and without the query.

    Raises:
        WireFault: When it names none.
    """
    try:
        url = httptools.parse_url(target)
        found = url.path or (b"/" if url.host else b"")
        text = urllib.parse.unquote(found.decode("ascii"))
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        text = ""
    if not text:
        raise WireFault(400, "the target of the request has no path")
    return text


def answer(response: Response, request_id: str, *, close: bool) -> bytes:
    """Write an answer's head.

    Args:
        response: The answer.
        request_id: What its request is called; empty where there is none.
        close: Whether it is the last on its connection.

    Raises:
        ValueError: When the value of a header has control characters.
    """
    head = _status(response.status) + _date(int(time()))
    if response.status != http.HTTPStatus.NO_CONTENT:
        head += f"content-type: {response.media}\r\ncontent-length: {len(response.body)}\r\n"
    if request_id:
        head += f"x-request-id: {request_id}\r\n"
    for name, value in response.headers.items():
        if _CONTROL.search(value):
            raise ValueError(f"the header {name} has control characters")
        head += f"{name}: {value}\r\n"
    if close:
        head += "connection: close\r\n"
    return f"{head}\r\n".encode("latin-1", "replace")


@functools.lru_cache(64)
def _status(status: int) -> str:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"


@functools.lru_cache(1)
def _date(second: int) -> str:
    return f"date: {formatdate(second, usegmt=True)}\r\n"
