"""Whether two ways of computing agree, and where in the graph they part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, ValueInfoProto

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Tolerance:
    """The largest difference that counts as equal: `absolute` + `relative` of the tensor's largest magnitude."""

    absolute: float
    relative: float

    def limit(self, expected: NDArray[np.generic]) -> float:
        """Give the largest allowed difference from these values; whole numbers must be equal."""
        if not np.issubdtype(expected.dtype, np.floating):
            return 0.0
        finite = expected[np.isfinite(expected)]
        return self.absolute + self.relative * float(np.abs(finite).max(initial=0.0))


@dataclass(frozen=True)
class Case:
    """Inputs and the outputs that they must give."""

    feed: Feed
    expected: Feed

    @property
    def shapes(self) -> str:
        """The inputs' shapes, for messages."""
        return ", ".join(f"{name} {list(value.shape)}" for name, value in self.feed.items())


@dataclass(frozen=True)
class Finding:
    """An output that differs beyond tolerance: by how much, at which optimization level, for which case."""

    output: str
    difference: float
    limit: float
    level: str
    case: Case


def difference(expected: NDArray[np.generic], got: NDArray[np.generic]) -> float:
    """Give the largest absolute difference; infinite for another shape, or where only one is NaN.

    >>> difference(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    if expected.shape != got.shape:
        return float("inf")
    left, right = expected.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, np.abs(left - right))
    return float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))


def compare(
    model: ModelProto,
    cases: Sequence[Case],
    tolerance: Tolerance,
    levels: Iterable[str] = tuple(runtime.LEVELS),
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[float, Finding | None]:
    """Run a model on every case at every optimization level.

    Returns:
        The largest difference seen, and the first output beyond tolerance, weakest level first.

    Raises:
        StageError: When onnxruntime cannot load or run the model.
    """
    largest, first = 0.0, None
    with onnxfile.loadable(model) as place:
        for level in track(levels):
            opened = runtime.session(place, threads=1, level=level)
            for case in cases:
                got = runtime.execute(opened, case.feed, list(case.expected))
                for name, expected in case.expected.items():
                    gap, limit = difference(expected, got[name]), tolerance.limit(expected)
                    largest = max(largest, gap)
                    if gap > limit and first is None:
                        first = Finding(name, gap, limit, level, case)
    return largest, first


def tapped(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Copy a model so that it gives these values instead of its outputs."""
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    twin.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return twin


def first_layer(
    model: ModelProto, feed: Feed, expected: Mapping[str, NDArray[np.generic]], tolerance: Tolerance, level: str
) -> str | None:
    """Name the first node, in the graph's order, whose value differs from the expected one of the same name.

    Without optimization all values are read in one run. At other levels reading a value can prevent the very
    fusion that is wrong, so that values are read one at a time, and searched by halving.

    Args:
        model: The graph that is wrong somewhere.
        feed: Inputs for which it is.
        expected: Right values, by the name that the graph gives them; others are passed over.
        tolerance: What counts as equal.
        level: Optimization level at which the graph is wrong.

    Returns:
        The node's name; None when every value that can be compared is right.
    """
    known = [(node.name, name) for node in model.graph.node for name in node.output if name in expected]
    if level == "disabled":
        got = _read(model, [name for _, name in known], feed, level)
        wrong = [node for node, name in known if _differs(expected[name], got[name], tolerance)]
        return wrong[0] if wrong else None
    low, high = 0, len(known) - 1
    while low < high:
        middle = (low + high) // 2
        name = known[middle][1]
        if _differs(expected[name], _read(model, [name], feed, level)[name], tolerance):
            high = middle
        else:
            low = middle + 1
    if not known:
        return None
    node, name = known[low]
    return node if _differs(expected[name], _read(model, [name], feed, level)[name], tolerance) else None


def _differs(expected: NDArray[np.generic], got: NDArray[np.generic], tolerance: Tolerance) -> bool:
    # A rewritten graph may keep a name for a value of another form; only like is compared with like.
    return expected.shape == got.shape and difference(expected, got) > tolerance.limit(expected)


def _read(model: ModelProto, names: list[str], feed: Feed, level: str) -> Feed:
    if not names:
        return {}
    with onnxfile.loadable(tapped(model, names)) as place:
        return runtime.execute(runtime.session(place, threads=1, level=level), feed, names)


def refuse(finding: Finding, what: str, layer: str | None) -> StageError:
    """Say which output moved, by how much, and where it began."""
    place = f"the first layer that differs is '{layer}'" if layer else "no single layer is responsible"
    return StageError(
        f"{what}: output '{finding.output}' differs by {finding.difference:.3g} (allowed {finding.limit:.3g}) at "
        f"optimization level '{finding.level}' for {finding.case.shapes}; {place}",
        where=layer or finding.output,
    )
