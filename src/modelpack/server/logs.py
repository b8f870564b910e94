"""What the server writes to standard error: one JSON object a line, or plain text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .settings import Settings

_log = logging.getLogger("modelpack.server")
_SOURCES = ("modelpack.server", "asyncio", "opentelemetry")
_ENDING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # ends a line, or drives a terminal
_PLAIN = re.compile(r"[\w./:{}+-]+")


class Lines(logging.Formatter):
    """One record as a line. What `extra={"fields": …}` names stands beside the message.

    Args:
        always: Fields of every line.
    """

    def __init__(self, always: Mapping[str, Any]) -> None:
        super().__init__()
        self._always = always

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return {**self._always, **getattr(record, "fields", {})}


class JsonLines(Lines):
    """`{"time": …, "level": …, "message": …}` with the fields, and `exception` with a trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; what is no ASCII is escaped, so that no client can end a line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        content = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        content |= self._fields(record)
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, separators=(",", ":"), default=str)


class TextLines(Lines):
    """Time, level and message, with the fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; a trace follows on lines that begin with spaces, and nothing else makes a new one."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in self._fields(record).items())
        line = f"{self.formatTime(record)} {record.levelname} {_tame(record.getMessage())}{fields}"
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n  ".join([line, *map(_tame, trace)])


def _tame(text: str) -> str:
    return _ENDING.sub(lambda found: repr(found[0])[1:-1], text)


def _plain(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def begin(settings: Settings, **always: object) -> None:
    """Write the server's log, and that of what it stands on, to standard error from now on.

    Args:
        settings: Form and level.
        always: Fields of every line.
    """
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines(always) if text else JsonLines(always))
    for name in _SOURCES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    _log.setLevel(settings.log_level.upper())


def answered(message: str, status: int, about: Mapping[str, Any]) -> None:
    """Write the line of one request, as `settings.log_requests` asks for it.

    Args:
        message: Its method, its route and how it ended.
        status: The HTTP status; from 500 on the line is a warning.
        about: What else the line tells.
    """
    _log.log(logging.WARNING if status >= 500 else logging.INFO, message, extra={"fields": {**about, "status": status}})
