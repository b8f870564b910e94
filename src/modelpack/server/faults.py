"""The two ways in which the server says no: to a request, and to starting at all."""

from __future__ import annotations


class StartError(Exception):
    """The server cannot start; the message says why and what to change."""


class Refused(Exception):  # noqa: N818 - an answer to the client, not an error of the server
    """A request that gets an error answer.

    Args:
        status: The HTTP status.
        message: What was wrong and what was expected, for the client.
        headers: Further response headers, such as `Retry-After`.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Disconnected(Exception):  # noqa: N818 - an event, not an error
    """The client went away before its answer."""
