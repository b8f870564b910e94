"""Calibration: the ranges of activations, seen over any number of rows in bounded memory.

The first pass lets onnxruntime reduce each tensor to its smallest and largest value inside the graph, so that no
activation leaves it. Percentiles take a second pass over histograms between those bounds, a few tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from modelpack.errors import StageError
from modelpack.numerics import differences, onnxfile, runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed

Passes = Callable[[str], "Iterable[Feed]"]
"""Reads the calibration rows once more from the start; the argument says what for, as a progress label."""

BINS = 2048
BUDGET = 256 * 2**20
"""Bytes of activations that one run may give back."""


@dataclass(frozen=True)
class Extent:
    """The smallest and largest value of a tensor, and the most elements it had in one run."""

    low: float
    high: float
    elements: int


def extents(model: ModelProto, names: Sequence[str], passes: Passes, device: str = "cpu") -> dict[str, Extent]:
    """Find the smallest and largest value of each tensor over all rows.

    Raises:
        StageError: When there are no rows, or a tensor holds NaN or infinity.
    """
    found: dict[str, Extent] = {}
    if not names:
        return found
    with onnxfile.loadable(_reduced(model, names)) as place:
        opened = runtime.session(place, device)
        for feed in passes("find ranges"):
            got = list(runtime.execute(opened, feed).values())
            for name, low, high, size in zip(names, got[0::3], got[1::3], got[2::3], strict=True):
                before = found.get(name, Extent(np.inf, -np.inf, 0))
                seen = Extent(
                    min(before.low, float(low)), max(before.high, float(high)), max(before.elements, int(size))
                )
                if not (np.isfinite(float(low)) and np.isfinite(float(high))):
                    raise StageError(
                        f"the activation '{name}' is not finite on the calibration rows",
                        where=_maker(model, name),
                        then="exclude the layers that read it, or mend the model or the data",
                    )
                found[name] = seen
    if not found:
        raise StageError("the calibration data have no rows that the model could read")
    return found


def _reduced(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Copy a model so that it gives minimum, maximum and size of each tensor, and nothing else."""
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    for place, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax", "Size"):
            output = f"modelpack.{operator}.{place}"
            node = helper.make_node(operator, [name], [output])
            if operator != "Size":
                node.attribute.append(helper.make_attribute("keepdims", 0))
            twin.graph.node.append(node)
            twin.graph.output.append(ValueInfoProto(name=output))
    return twin


def percentiles(
    model: ModelProto,
    seen: Mapping[str, Extent],
    share: float,
    passes: Passes,
    *,
    device: str = "cpu",
    budget: int = BUDGET,
) -> dict[str, Extent]:
    """Narrow ranges so that they still hold `share` per cent of the values, the rest cut evenly at both ends."""
    narrowed = dict(seen)
    for chunk in _chunks(seen, budget):
        for name, counts in _histograms(model, {name: seen[name] for name in chunk}, passes, device).items():
            low, high = between(counts, seen[name], share)
            narrowed[name] = Extent(low, high, seen[name].elements)
    return narrowed


def _chunks(seen: Mapping[str, Extent], budget: int) -> list[list[str]]:
    """Group tensors so that a run gives back at most `budget` bytes, or one tensor."""
    chunks: list[list[str]] = []
    room = 0
    for name, extent in seen.items():
        size = 4 * extent.elements
        if not chunks or size > room:
            chunks.append([])
            room = budget
        chunks[-1].append(name)
        room -= size
    return chunks


def _histograms(
    model: ModelProto, seen: Mapping[str, Extent], passes: Passes, device: str
) -> dict[str, NDArray[np.int64]]:
    counts = {name: torch.zeros(BINS, dtype=torch.int64) for name in seen}
    with onnxfile.loadable(differences.tapped(model, list(seen))) as place:
        opened = runtime.session(place, device)
        for feed in passes("count values"):
            for name, values in runtime.execute(opened, feed, list(seen)).items():
                counts[name] += histogram(torch.from_numpy(values), seen[name])
    return {name: value.numpy() for name, value in counts.items()}


def histogram(values: torch.Tensor, extent: Extent) -> torch.Tensor:
    """Count values in `BINS` equal bins between an extent's bounds; int64, since float32 stops counting at 2**24."""
    width = max(extent.high - extent.low, 1e-38)
    bins = ((values.flatten().double() - extent.low) * (BINS / width)).floor_().clamp_(0, BINS - 1)
    return torch.bincount(bins.long(), minlength=BINS)


def between(counts: NDArray[np.int64], extent: Extent, share: float) -> tuple[float, float]:
    """Give the bounds, to one bin's width, that hold `share` per cent of the counted values."""
    total = int(counts.sum())
    if total == 0:
        return extent.low, extent.high
    cut = total * (1.0 - share / 100.0) / 2.0
    rising = np.cumsum(counts)
    first = int(np.searchsorted(rising, cut, side="right"))
    last = int(np.searchsorted(rising, total - cut, side="left"))
    width = (extent.high - extent.low) / BINS
    return extent.low + first * width, min(extent.low + (last + 1) * width, extent.high)


def _maker(model: ModelProto, name: str) -> str:
    node = onnxfile.producers(model.graph).get(name)
    return node.name if node is not None else name
