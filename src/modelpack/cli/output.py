"""The stream of results: text and JSON on standard output, and what becomes of it when nobody reads."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from modelpack.errors import MissingError


class PipeClosed(KeyboardInterrupt):
    """Nobody reads standard output any more: stop as if interrupted."""


def encode(document: Any, indent: int | None = None) -> str:
    """Write JSON that every reader takes: a figure that is no number becomes null."""
    return json.dumps(_strict(document), indent=indent, ensure_ascii=False, default=str, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def out(text: str, stream: TextIO | None = None) -> None:
    """Write to standard output, or to the stream that was it.

    Raises:
        PipeClosed: When its reader has gone.
        MissingError: When it cannot be written.
    """
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        # What is left in the buffer must not fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise PipeClosed from None
        raise MissingError(f"cannot write to standard output: {error.strerror}") from error
