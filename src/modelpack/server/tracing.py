"""Where a request belongs in a distributed trace.

Source: W3C, "Trace Context", the header `traceparent`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def _span() -> str:
    return os.urandom(8).hex()


@dataclass(frozen=True)
class Trace:
    """One request as a span: ids in hexadecimal, and whether the caller records the trace (the lowest bit of `flags`).

    Attributes:
        id: The trace's, 32 digits.
        parent: The caller's span, 16 digits; empty where the trace begins here.
        flags: Two digits.
        span: This request's own, 16 digits.
    """

    id: str
    parent: str = ""
    flags: str = "00"
    span: str = field(default_factory=_span)

    @property
    def ids(self) -> dict[str, str]:
        """What the log calls it."""
        parent = {"parent_id": self.parent} if self.parent else {}
        return {"trace_id": self.id, "span_id": self.span, **parent, "trace_flags": self.flags}


def continued(headers: list[str]) -> Trace:
    """Go on with the trace of a request's `traceparent` headers; begin one where there is not exactly one good header.

    Versions after 00 are read as 00, whatever they add at the end.
    """
    found = _TRACEPARENT.fullmatch(headers[0]) if len(headers) == 1 else None
    if found is None or (found[1] == "00" and found[5] is not None):
        return Trace(os.urandom(16).hex())
    return Trace(found[2], found[3], found[4])
