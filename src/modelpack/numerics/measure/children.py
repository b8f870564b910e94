"""Starting the process that measures, and understanding its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from modelpack import errors
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Progress = Callable[[int, int], None]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TAIL = 5


def run(request: Mapping[str, Any], threads: int, progress: Progress = lambda _cell, _rounds: None) -> Any:
    """Let a fresh process do one request.

    Args:
        request: What `worker` understands.
        threads: Threads of the native libraries, set before they load.
        progress: Told which cell is measured, and how many of its rounds are done.

    Raises:
        ModelpackError: The one that the process met.
        StageError: When it died.
    """
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads)), "ORT_DISABLE_TELEMETRY": "1"}
    # The working directory may hold files that shadow libraries: the child finds modules where this process does.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-m", "modelpack.numerics.measure.worker"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        ) as child,
    ):
        try:
            answer = _talk(child, request, progress)
            child.wait()
        finally:
            child.kill()
        if answer is None:
            raise _died(child.returncode, said)
    return _understood(answer)


def _talk(child: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request))
        child.stdin.close()
    except BrokenPipeError:
        return None  # it died before it read; the caller says how
    for line in child.stdout:
        answer: dict[str, Any] = json.loads(line)
        if "progress" not in answer:
            return answer
        progress(*answer["progress"])
    return None


def _understood(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        told = answer["error"]
        raise getattr(errors, told["type"])(told["what"], where=told["where"], then=told["then"])
    return answer["result"]


def _died(code: int, said: IO[str]) -> StageError:
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    if code < 0:
        how, then = f"was killed by signal {-code}", "signal 9 usually means that memory ran out: use smaller batches"
    else:
        how, then = f"ended with code {code}", "\n  ".join(lines[-_TAIL:])
    return StageError(f"the measuring process {how}", then=then)
