"""What is examined: a model, what it is compared with, and the rows it is run on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.numerics import graph, onnxfile, rows, runtime, stored
from modelpack.numerics.measure.comparison import MOST_DECIBELS, decibels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.device import Target
    from modelpack.numerics.rows import Feed
    from modelpack.numerics.stored import Layer
    from modelpack.tensors import TensorSpec

_HUGE = 1e200
"""A difference between a number and none, squared."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under examination; what several checks need is computed once, when the first one asks.

    Attributes:
        model: The graph.
        inputs: Its inputs, in its order.
        feeds: A few batches of rows; empty where none could be found or made up.
        reference: The float graph it was made from; None when unknown.
        device: ``cpu`` or ``cuda:N``.
        made_up: Whether the rows are invented, so that they say nothing about quality.
        lacks: Why there are no rows, where there are none.
        target: The hardware it shall run on, as recipes name it; ``auto`` is this machine.
        left_out: Names of layers that were left in float on purpose.
    """

    model: ModelProto
    inputs: Mapping[str, TensorSpec]
    feeds: Sequence[Feed] = ()
    reference: ModelProto | None = None
    device: str = "cpu"
    made_up: bool = False
    lacks: str = ""
    target: Target = "auto"
    left_out: frozenset[str] = frozenset()

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The layers with constant weights."""
        return stored.layers(self.model)

    @functools.cached_property
    def quantized(self) -> bool:
        """Whether anything in the graph is rounded to integers, or kept in fewer than 32 bits."""
        return graph.is_quantized(self.model) or any(layer.reduced for layer in self.layers)

    @functools.cached_property
    def session(self) -> Any:
        """The model, fully optimized.

        Raises:
            StageError: When onnxruntime cannot load it.
        """
        return opened(self.model, self.device)

    @functools.cached_property
    def reference_session(self) -> Any:
        """The float model, fully optimized."""
        assert self.reference is not None, "checks look whether there is a reference first"
        return opened(self.reference, self.device)

    @functools.cached_property
    def expected(self) -> list[Feed]:
        """What the float model answers to each batch of rows, in floating-point outputs."""
        return [real(runtime.execute(self.reference_session, feed)) for feed in self.feeds]

    @functools.cached_property
    def errors(self) -> dict[str, tuple[float, float]]:
        """What `errors_of` gives for the model itself."""
        return self.errors_of(self.session)

    def errors_of(self, session: Any) -> dict[str, tuple[float, float]]:
        """Give the energies of each expected output, and of what a session's differs by, over all rows.

        Raises:
            StageError: When the session fails on them, or has no such output.
        """
        sums: dict[str, tuple[float, float]] = {}
        for feed, right in zip(self.feeds, self.expected, strict=True):
            got = runtime.execute(session, feed, list(right)) if right else {}
            for name, value in right.items():
                (signal, noise), (more, wrong) = sums.get(name, (0.0, 0.0)), energies(value, got[name])
                sums[name] = signal + more, noise + wrong
        return sums

    @property
    def few(self) -> Feed | None:
        """At most two rows."""
        return rows.take(self.feeds[0], self.inputs, 2) if self.feeds else None


def opened(model: ModelProto, device: str = "cpu", level: str = "all") -> Any:
    """Open a graph with one thread, so that it gives the same on every machine of a kind.

    Raises:
        StageError: When onnxruntime cannot load it.
    """
    with onnxfile.loadable(model) as place:
        return runtime.session(place, device, threads=1, level=level)


def real(found: Feed) -> Feed:
    """Keep the outputs of floating-point numbers."""
    return {name: value for name, value in found.items() if value.dtype.kind == "f"}


def likeness(expected: NDArray[np.generic], got: NDArray[np.generic], floor: float = 0.0) -> float:
    """Give the signal-to-noise ratio of one value beside another, in decibels.

    Args:
        expected: Right values.
        got: Values of the same shape.
        floor: Mean square that counts as signal where the right values' own is smaller.

    >>> round(likeness(np.array([1.0, 1.0]), np.array([1.1, 0.9])))
    20
    """
    signal, noise = energies(expected, got)
    return decibels(max(signal / max(expected.size, 1), floor), noise / max(expected.size, 1))


def alike(ratio: float) -> str:
    """Say how alike values with this ratio in decibels are.

    >>> alike(31.25), alike(200.0), alike(-200.0)
    ('31.2 dB alike', 'equal', 'nothing alike')
    """
    if abs(ratio) == MOST_DECIBELS:
        return "equal" if ratio > 0 else "nothing alike"
    return f"{ratio:.1f} dB alike"


def energies(expected: NDArray[np.generic], got: NDArray[np.generic]) -> tuple[float, float]:
    """Sum the squares of right values, and of what others differ by; where only one is finite, that is huge.

    >>> energies(np.array([3.0, np.nan]), np.array([2.0, np.nan]))
    (9.0, 1.0)
    """
    if expected.shape != got.shape:
        return 0.0, _HUGE
    left, right = expected.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, left - right)
    noise = np.nan_to_num(np.square(gap), nan=_HUGE, posinf=_HUGE).sum()
    return float(np.square(left[np.isfinite(left)]).sum()), float(noise)


def usual_power(values: NDArray[np.generic]) -> float:
    """Give the mean square of a usual row: one of zeros must not be held against itself, nor a huge one hide others.

    >>> usual_power(np.array([[0.0], [1.0], [1.0], [100.0]]))
    1.0
    """
    squares = np.square(np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0))
    by_row = squares.reshape(len(values), -1).mean(axis=1)
    return float(max(np.median(by_row), 1e-4 * by_row.mean()))
