"""The child process that measures: ``python -m modelpack.numerics.measure.worker``, JSON in, JSON lines out.

A process of its own has the number of threads that was asked for from its start, and a memory of its own. One request
comes on stdin, as `children.run` writes it; every line of stdout is one answer: ``{"progress": [cell, rounds]}``, then
``{"result": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.errors import ModelpackError, StageError
from modelpack.numerics.measure import memory, timing, work
from modelpack.numerics.measure.subjects import Subject
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelpack.numerics.measure.timing import Bind, Timer
    from modelpack.numerics.rows import Feed

    Tell = Callable[[Mapping[str, Any]], None]

_TICK_SECONDS = 0.2


def main() -> int:
    """Answer one request."""
    # Libraries may print: only this copy of stdout is the answer, theirs goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    request = json.loads(sys.stdin.read())
    try:
        tell({"result": {"time": _time, "weigh": _weigh}[request["do"]](request, tell)})
    except ModelpackError as error:
        told = {"type": type(error).__name__, "what": error.what, "where": error.where, "then": error.then}
        tell({"error": told})
    return 0


def _time(request: Mapping[str, Any], tell: Tell) -> Any:
    """Time all subjects in turns, at every batch size."""
    subjects = [_subject(body) for body in request["subjects"]]
    binds = [timing.opened(item, request["device"], request["threads"], request["level"]) for item in subjects]
    cells = []
    for place, paths in enumerate(request["feeds"]):
        timers = [
            _bound(subject, bind, _feed(subject, path))
            for subject, bind, path in zip(subjects, binds, paths, strict=True)
        ]
        series = timing.interleave(
            timers,
            rounds=request["rounds"],
            seconds=request["seconds"],
            warmup=request["warmup"],
            tick=_ticker(tell, place),
        )
        cells.append([{"calls": item.calls, "rounds": item.rounds} for item in series])
    return cells


def _ticker(tell: Tell, cell: int) -> Callable[[int], None]:
    told = 0.0

    def tick(done: int) -> None:
        # Whoever reads this needs a processor too: not after every round.
        nonlocal told
        if time.monotonic() - told > _TICK_SECONDS:
            told = time.monotonic()
            tell({"progress": [cell, done]})

    return tick


def _weigh(request: Mapping[str, Any], _tell: Tell) -> Any:
    """Load one subject in this fresh process and run it at rising batch sizes; then count its work."""
    subject, device = _subject(request["subject"]), request["device"]
    if subject.kind == "torch":
        import torch  # noqa: F401  loading the library is not loading the model

        from modelpack.numerics import models  # noqa: F401
    on_device = memory.device_used(device) if device != "cpu" else 0
    before, start = memory.resident(), time.perf_counter()
    bind = timing.opened(subject, device, request["threads"], request["level"])
    load_ms = 1000 * (time.perf_counter() - start)
    peaks, used = [], []
    for path in request["feeds"]:
        _bound(subject, bind, _feed(subject, path))()
        peaks.append(memory.peak())
        used.append(max(0, memory.device_used(device) - on_device) if device != "cpu" else 0)
    found = {"load_ms": load_ms, "runtime_bytes": before, "peak_bytes": peaks, "device_bytes": used}
    return {**found, "macs": work.macs_per_row(subject, _feed(subject, request["feeds"][0]))}


def _bound(subject: Subject, bind: Bind, feed: Feed) -> Timer:
    """Bind a feed and try it once, so that a model's failure has the model's name."""
    try:
        timer = bind(feed)
        timer()
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise StageError(f"failed on {shapes}: {type(error).__name__}: {error}", where=subject.name) from error
    return timer


def _subject(body: Mapping[str, Any]) -> Subject:
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in body["inputs"].items()}
    return Subject(body["name"], body["kind"], Path(body["path"]), inputs, body["size"], body["id"])


def _feed(subject: Subject, path: str) -> Feed:
    with np.load(path) as arrays:
        return {name: arrays[key] for name, key in zip(subject.inputs, arrays.files, strict=True)}


if __name__ == "__main__":
    sys.exit(main())
