"""Answers of HTTP: what they hold, which status says no, and in which form a client wants them."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from .faults import Failed, Fault, Forbidden, Full, Invalid, Late, Unknown, Unproven, Unready

STATUSES: dict[type[Fault], int] = {
    Invalid: 400, Unproven: 401, Forbidden: 403, Unknown: 404, Full: 429, Failed: 500, Unready: 503, Late: 504,
}  # fmt: skip

JSON = "application/json"
FORM, BYTES = "application/x-www-form-urlencoded", "application/octet-stream"
UNSAID = ("", FORM, BYTES)
"""What clients send that were told no media type: most send none, `curl -d` calls everything a form, others bytes."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Refused(Fault):
    """A request that only HTTP can get wrong: its method, media type, size or speed.

    Args:
        status: The HTTP status.
        message: What was wrong and what was expected, for the client.
        headers: Further response headers, such as `Accept-Encoding`.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Response:
    """An answer before it is sent."""

    status: int
    body: bytes
    media: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200, **headers: str) -> Response:
    """Answer with a JSON value."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, orjson.dumps(content), headers=named)


def failure(fault: Fault, content: Any = None) -> Response:
    """Answer a fault with its status, its headers, and `content`, which is `{"error": message}` when None."""
    content = {"error": fault.message} if content is None else content
    if isinstance(fault, Refused):
        return as_json(content, fault.status, **fault.headers)
    named = {}
    if isinstance(fault, (Full, Unready)):
        named["retry_after"] = str(fault.retry_after)
    elif isinstance(fault, Unproven):
        named["www_authenticate"] = 'Bearer realm="modelpack"' + (', error="invalid_token"' if fault.shown else "")
    return as_json(content, STATUSES[type(fault)], **named)


def identity(given: str) -> str:
    """Give what a request is called: the client's own id for it, where that is safe to repeat, else a new one."""
    return given if _SAFE_ID.fullmatch(given) else os.urandom(12).hex()


@functools.lru_cache(64)
def preferred(accept: str, offers: tuple[str, ...]) -> str:
    """Choose the offer that an Accept header likes best; the first one wins ties, and when nothing fits.

    >>> preferred("text/html,*/*;q=0.8", ("application/json", "text/html"))
    'text/html'
    >>> preferred("*/*", ("application/json", "text/html"))
    'application/json'
    """
    if accept in ("", "*/*", offers[0]):
        return offers[0]
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        weights[media] = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0

    def liking(offer: str) -> float:
        return weights.get(offer, weights.get(f"{offer.partition('/')[0]}/*", weights.get("*/*", 0.0)))

    return max(offers, key=liking)
