"""The ways in which the server says no: to starting at all, and to a request, whatever protocol it came by.

A fault says what happened and never how a protocol words it: `exchange.STATUSES` is its meaning in HTTP.
"""

from __future__ import annotations


class StartError(Exception):
    """The server cannot start; the message says why and what to change."""


class Fault(Exception):  # noqa: N818 - an answer to the client, not an error of the server
    """A request that is not answered as it asked; the message is for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(Fault):
    """What was sent is not what the model takes; it will never be."""


class Unproven(Fault):
    """The request shows no token that this server knows; `shown` says whether it shows one at all."""

    def __init__(self, message: str, *, shown: bool = False) -> None:
        super().__init__(message)
        self.shown = shown


class Forbidden(Fault):
    """This server does not allow it: it would change what is served, or the client shows no certificate."""


class Unknown(Fault):
    """Nothing has this name: no such model, version or path."""


class Full(Fault):
    """Too many requests wait already; the same request may succeed in `retry_after` seconds."""

    retry_after = 1


class Unready(Fault):
    """The model is loading, or the server is stopping; the same request may succeed in `retry_after` seconds."""

    retry_after = 1


class Late(Fault):
    """The deadline passed before the answer was there."""


class Failed(Fault):
    """The model failed on good inputs; the server's log has the reason."""


class Disconnected(Exception):  # noqa: N818 - an event, not an error
    """The client went away before its answer."""
