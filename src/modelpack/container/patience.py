"""Trying again: what a broken connection or a busy registry spoils may succeed a little later."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from modelpack.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further attempt."""
BUSY = (429, 500, 502, 503, 504)
"""Status codes of a server that may answer later."""
_LONGEST = 60.0
"""Most seconds that a server's Retry-After is obeyed."""
_Result = TypeVar("_Result")


class BrokenError(MissingError):
    """The connection broke or the server is busy: the same may succeed `wait` seconds later."""

    wait = 0.0


def persist(attempt: Callable[[], _Result], reached: Callable[[], int] = lambda: 0) -> _Result:
    """Try again, after growing pauses, what fails because a connection broke or a server is busy.

    Args:
        attempt: What to try.
        reached: How far it has come; an attempt that got further does not count.

    Raises:
        BrokenError: When it failed once more than there are `PAUSES`.
    """
    failures, best = 0, reached()
    while True:
        try:
            return attempt()
        except BrokenError as error:
            if reached() > best:
                failures, best = 0, reached()
            if failures == len(PAUSES):
                raise
            time.sleep(max(PAUSES[failures], error.wait))
            failures += 1


def busy(status: int, headers: Mapping[str, str], what: str, where: str) -> MissingError:
    """Describe a failure: one that may pass when the server is busy and asks for no more than a minute."""
    text = headers.get("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdigit() else 0.0
    if status not in BUSY or seconds > _LONGEST:
        return MissingError(what, where=where, then=f"try again in {seconds:g} seconds" if seconds else "")
    error = BrokenError(what, where=where)
    error.wait = seconds
    return error
