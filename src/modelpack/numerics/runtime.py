"""Sessions of onnxruntime: opened on the device that was asked for, and run once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

# The engine's Linux wheels report to their vendor unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as engine_errors

from modelpack.errors import MissingError, StageError
from modelpack.numerics.silence import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed

__all__ = [
    "AT_REST",
    "ENGINE_ERRORS",
    "LEVELS",
    "PATIENCE",
    "available",
    "execute",
    "ort",
    "providers",
    "reason",
    "session",
    "survives",
]

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
"""Graph optimization levels of onnxruntime, weakest first."""

AT_REST = {"session.intra_op.allow_spinning": "0"}
"""Session entries that let threads sleep between runs, where other work is done meanwhile."""

PATIENCE = 60.0
"""Seconds that a file from anywhere may take for its first few rows."""

ENGINE_ERRORS: tuple[type[Exception], ...] = (
    engine_errors.Fail,
    engine_errors.EPFail,
    engine_errors.EngineError,
    engine_errors.InvalidArgument,
    engine_errors.InvalidGraph,
    engine_errors.InvalidProtobuf,
    engine_errors.NoModel,
    engine_errors.NoSuchFile,
    engine_errors.NotImplemented,
    engine_errors.RuntimeException,
)
"""What onnxruntime raises."""


def available() -> list[str]:
    """Name the execution providers that the installed onnxruntime was built with."""
    return [str(name) for name in ort.get_available_providers()]


def providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """Map ``cpu`` or ``cuda[:N]`` to onnxruntime's execution providers, the wanted one first.

    Raises:
        MissingError: When this onnxruntime was built without the provider.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda":
        raise MissingError(f"onnxruntime has no provider for the device '{device}'", then="use cpu or cuda")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingError(
            "this onnxruntime has no CUDA provider",
            then="install modelpack[cuda] (onnxruntime-gpu instead of onnxruntime), or use --device cpu",
        )
    return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]


def session(
    model: Path | bytes,
    device: str = "cpu",
    *,
    threads: int | None = None,
    level: str = "all",
    optimized: Path | None = None,
    entries: Mapping[str, str] | None = None,
    profile: Path | None = None,
    planned: bool = True,
) -> ort.InferenceSession:
    """Open a model in onnxruntime.

    Args:
        model: An ONNX file, or its bytes.
        device: ``cpu`` or ``cuda[:N]``.
        threads: Threads inside one operator; all cores when None.
        level: A key of `LEVELS`.
        optimized: Where to save the graph as optimized at `level`.
        entries: Further session configuration entries of onnxruntime.
        profile: Where to write what every node took, when the session is told to end profiling; a time is added to
            the name.
        planned: Whether memory is set aside for all activations after the first run of a shape, more than is in use at
            any time.

    Raises:
        MissingError: When the provider asked for was not obtained; onnxruntime itself falls back silently.
        StageError: When onnxruntime cannot load the model.
    """
    wanted = providers(device)
    if device != "cpu":
        with quiet():  # torch's wheels bring the CUDA libraries to a place where the engine does not look by itself
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = planned
    options.intra_op_num_threads = threads or 0
    # Below "fatal" the engine writes to the terminal by itself; everything it refuses is raised as well.
    options.log_severity_level = 4
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        if not isinstance(model, bytes):  # otherwise the saved graph would point at the old file's tensors
            entry = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(entry, f"{optimized.name}.data")
    try:
        opened = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=wanted)
    except ENGINE_ERRORS as error:
        where = "" if isinstance(model, bytes) else str(model)
        raise StageError(f"onnxruntime cannot load the model: {reason(error)}", where=where) from error
    first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
    if opened.get_providers()[0] != first:
        raise MissingError(
            f"asked onnxruntime for {first}, got {opened.get_providers()[0]}",
            then="install the CUDA and cuDNN libraries that this onnxruntime needs, or use --device cpu",
        )
    return opened


def survives(model: Path | bytes, device: str = "cpu") -> bool:
    """Whether a process that opens a model lives on: some graphs crash onnxruntime itself, and us with it."""
    code = (
        "import sys, pathlib; from modelpack.numerics import runtime;"
        "runtime.session(pathlib.Path(sys.argv[2]) if sys.argv[2] else sys.stdin.buffer.read(), sys.argv[1])"
    )
    path, data = ("", model) if isinstance(model, bytes) else (str(model), b"")
    tried = subprocess.run([sys.executable, "-c", code, device, path], input=data, capture_output=True, check=False)
    return tried.returncode >= 0


def reason(error: Exception, lines: int = 2) -> str:
    """Give the first lines of another library's error as one line of at most 400 characters."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines] if line.strip())
    text = text or type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."


def execute(
    opened: ort.InferenceSession,
    feed: Mapping[str, NDArray[np.generic]],
    outputs: Sequence[str] | None = None,
    *,
    seconds: float | None = None,
) -> Feed:
    """Run a session once; all outputs when none are named.

    Args:
        opened: The session.
        feed: Its inputs.
        outputs: Names of outputs.
        seconds: Time after which the run is given up: a file from anywhere may loop for ever.

    Raises:
        StageError: When onnxruntime fails on these values, or the time is over.
    """
    names = [item.name for item in opened.get_outputs()] if outputs is None else list(outputs)
    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        with _given_up(options, seconds):
            return dict(zip(names, opened.run(names, dict(feed), options), strict=True))
    except ENGINE_ERRORS as error:
        if options.terminate:
            then = "a loop in it may never end; look at it with `modelpack show`"
            raise StageError(f"the model gave no answer within {seconds:.0f} seconds", then=then) from error
        raise StageError(f"onnxruntime failed: {reason(error)}") from error


@contextlib.contextmanager
def _given_up(options: ort.RunOptions, seconds: float | None) -> Iterator[None]:
    """Stop a run that takes longer."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
