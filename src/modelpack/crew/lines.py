"""What a worker says: one JSON object a line, appended to a file of its own and read while it grows.

::

    {"begun": 0}                      it is there; how often the workers were started before
    {"event": {…}}                    something happened, told by the first worker
    {"print": "…"}                    the first worker's code printed something
    {"lost": "…"}                     it stopped because another one is gone
    {"stopped": 15}                   it was told to stop
    {"error": {type, what, …}}        it failed, and would fail again
    {"done": {metrics, results, …}}   it has finished
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from modelpack import errors
from modelpack.errors import ModelpackError, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RAISED = ("UsageError", "StageError", "MissingError", "StoreError")


class Writer:
    """One worker's file."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._stream = (folder / f"{rank}.jsonl").open("a", encoding="utf-8")

    def __call__(self, **line: Any) -> None:
        """Append a line."""
        self._stream.write(json.dumps(line, default=str) + "\n")
        self._stream.flush()


@dataclass
class Reader:
    """The files of all workers of a host.

    Attributes:
        folder: Where they grow.
    """

    folder: Path
    _open: dict[int, IO[bytes]] = field(default_factory=dict)
    _rest: dict[int, bytes] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give the lines that came since the last time, each with the rank of its worker."""
        for path in sorted(self.folder.glob("*.jsonl")):
            rank = int(path.stem)
            if rank not in self._open:
                self._open[rank] = path.open("rb")
            *whole, self._rest[rank] = (self._rest.get(rank, b"") + self._open[rank].read()).split(b"\n")
            for line in whole:
                yield rank, json.loads(line)

    def close(self) -> None:
        """Close the files."""
        for stream in self._open.values():
            stream.close()


def described(error: BaseException) -> dict[str, Any]:
    """Give an error as JSON."""
    if isinstance(error, ModelpackError):
        kind = next(item.__name__ for item in type(error).__mro__ if item.__name__ in (*_RAISED, "ModelpackError"))
        what = str(error) if isinstance(error, errors.RecipeError) else error.what
        return {"type": kind, "what": what, "where": error.where, "then": error.then}
    if isinstance(error, OSError) and error.errno:
        return {"type": "OSError", "errno": error.errno, "what": error.strerror, "where": str(error.filename or "")}
    return {"type": type(error).__name__, "what": str(error), "where": "", "then": ""}


def raised(body: Any, by: str) -> Exception:
    """Make an error of what `described` gave.

    Args:
        body: The JSON value; anything that is not of that form becomes an error that says so.
        by: Who met it, such as ``rank 1 on 10.0.0.2``; empty where all did.
    """
    if not isinstance(body, dict) or not all(isinstance(body.get(key), str) for key in ("type", "what", "where")):
        return StageError("it failed and said nothing that can be understood", where=by)
    kind, what, where, then = body["type"], body["what"], body["where"], str(body.get("then", ""))
    if kind == "OSError" and isinstance(body.get("errno"), int):
        return OSError(body["errno"], what, where or by)
    where = ": ".join(filter(None, (by, where)))
    if kind in _RAISED:
        made: Exception = getattr(errors, kind)(what, where=where, then=then)
        return made
    return ModelpackError(f"{kind}: {what}", where=where, then=then)
