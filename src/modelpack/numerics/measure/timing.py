"""Single calls on a clock, and models taking turns so that each meets the same machine."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.artifact import Artifact
from modelpack.numerics import runtime
from modelpack.numerics.measure.statistics import FEWEST_ROUNDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.measure.subjects import Subject

Timer = Callable[[], float]
"""Runs a model once and gives the milliseconds it took."""
Bind = Callable[["Mapping[str, NDArray[Any]]"], Timer]
"""Makes a timer of a model's feed."""

_TURN_MS = 20.0
_MOST_CALLS = 50
_SLOW_MS = 100.0
_NO_SPINNING = {"session.force_spinning_stop": "1"}
"""One model's idle threads must not take the processor from the model whose turn it is."""


def opened(subject: Subject, device: str, threads: int, level: str) -> Bind:
    """Load a model for timing.

    Raises:
        MissingError: When the device was not obtained.
        StageError: When it cannot be loaded.
    """
    if subject.kind == "onnx":
        session = runtime.session(subject.path, device, threads=threads, level=level, entries=_NO_SPINNING)
        return lambda feed: of_session(session, feed, device)
    import torch

    from modelpack.numerics import models

    torch.set_num_threads(threads)
    module = models.load(Artifact.load(subject.path), device)

    def bind(feed: Mapping[str, NDArray[Any]]) -> Timer:
        tensors = models.tensors(feed, device)
        return _torch_on_cuda(module, tensors) if device != "cpu" else _torch(module, tensors)

    return bind


def of_session(session: Any, feed: Mapping[str, NDArray[Any]], device: str = "cpu") -> Timer:
    """Make a timer of an onnxruntime session on fixed inputs."""
    return _onnx_on_cuda(session, feed, device) if device != "cpu" else _onnx(session, feed)


def _onnx(session: Any, feed: Mapping[str, NDArray[Any]]) -> Timer:
    names, arrays = [item.name for item in session.get_outputs()], dict(feed)

    def once() -> float:
        start = time.perf_counter_ns()
        session.run(names, arrays)
        return (time.perf_counter_ns() - start) / 1e6

    return once


def _onnx_on_cuda(session: Any, feed: Mapping[str, NDArray[Any]], device: str) -> Timer:
    """Keep inputs and outputs on the device, so that copies are not counted; the run waits for the device itself."""
    import onnxruntime

    number, binding = int(device.partition(":")[2] or 0), session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", number))
    for item in session.get_outputs():
        binding.bind_output(item.name, "cuda", number)

    def once() -> float:
        start = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter_ns() - start) / 1e6

    return once


def _torch(module: Any, tensors: Mapping[str, Any]) -> Timer:
    import torch

    from modelpack.numerics.calling import call

    def once() -> float:
        with torch.inference_mode():
            start = time.perf_counter_ns()
            call(module, tensors)
            return (time.perf_counter_ns() - start) / 1e6

    return once


def _torch_on_cuda(module: Any, tensors: Mapping[str, Any]) -> Timer:
    """Read the device's own clock: a call returns before the work is done."""
    import torch

    from modelpack.numerics.calling import call

    event: Any = torch.cuda.Event

    def once() -> float:
        start, end = event(enable_timing=True), event(enable_timing=True)
        with torch.inference_mode():
            start.record()
            call(module, tensors)
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return once


@dataclass
class Series:
    """One model's timings: every call, and one figure per round, in milliseconds."""

    calls: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


def interleave(
    timers: Sequence[Timer],
    *,
    rounds: int,
    seconds: float,
    warmup: int,
    clock: Callable[[], float] = time.monotonic,
    tick: Callable[[int], None] = lambda _done: None,
) -> list[Series]:
    """Let models take turns: in every round each is measured once, in an order that rotates.

    A turn is a burst of calls of about 20 ms, 50 at most; its median is the round's figure. Below 100 ms
    the first call of a turn is not counted: it pays for what the other models left in the caches.

    Args:
        timers: One per model.
        rounds: How many rounds.
        seconds: After this time no round begins, once there are `FEWEST_ROUNDS`.
        warmup: Calls of each model before the first round, at least 1.
        clock: Gives seconds.
        tick: Told how many rounds are done.
    """
    plans = [_turn(timer, warmup) for timer in timers]
    series = [Series() for _ in timers]
    began = clock()
    with _no_collection():
        for done in range(rounds):
            if done >= FEWEST_ROUNDS and clock() - began >= seconds:
                break
            for place in range(len(timers)):
                which = (done + place) % len(timers)
                settling, calls = plans[which]
                taken = [timers[which]() for _ in range(settling + calls)][settling:]
                series[which].calls += taken
                series[which].rounds.append(statistics.median(taken))
            tick(done + 1)
    return series


def _turn(timer: Timer, warmup: int) -> tuple[int, int]:
    """Warm a model up; give the calls of a turn that settle it, and those that count."""
    fastest = min(timer() for _ in range(max(1, warmup)))
    calls = math.ceil(_TURN_MS / fastest) if fastest > 0 else _MOST_CALLS
    return int(fastest < _SLOW_MS), int(np.clip(calls, 1, _MOST_CALLS))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timings."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
