"""How closely onnxruntime's integer kernels follow the torch model that rounds: in steps of the last bit (LSB).

Every part is judged on its own: torch computes each activation from the bytes that onnxruntime gave for those before
it. From the image on, a tie that two float sums break differently would be one step in the first layers and half of
all values in the fiftieth; onnxruntime's own optimization levels part like that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import ValueInfoProto
from torch import fx

from modelpack.errors import StageError
from modelpack.numerics import differences, onnxfile, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.differences import Case
    from modelpack.numerics.fake_quantization.quantizers import Quantizers
    from modelpack.numerics.fake_quantization.twin import Quantized
    from modelpack.numerics.rows import Feed

ENOUGH = 0.999
"""Share of the values that must lie within one step."""


@dataclass(frozen=True)
class Agreement:
    """What was compared.

    Attributes:
        shares: Optimization level → value → share of its numbers within one step, the graph's outputs and every
            rounded activation.
        inside: The lowest share, over levels, of all rounded activations together.
        largest: The largest absolute difference of an output.
        outputs: Names of the graph's outputs.
    """

    shares: Mapping[str, Mapping[str, float]]
    inside: float
    largest: float
    outputs: tuple[str, ...]

    @property
    def share(self) -> float:
        """The lowest share: of an output, or of all rounded activations together."""
        return min(self.inside, self.lowest(self.outputs)[0])

    def lowest(self, names: Iterable[str]) -> tuple[float, str, str]:
        """Give the lowest share of some values, with its level and value."""
        wanted = set(names)
        return min(
            (share, level, name)
            for level, shares in self.shares.items()
            for name, share in shares.items()
            if name in wanted
        )


def prove(
    model: ModelProto,
    student: Quantized,
    cases: Sequence[Case],
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Agreement:
    """Compare an exported graph with its torch model at every optimization level of onnxruntime.

    Raises:
        StageError: When fewer than 99.9 % of the numbers of an output, or of all rounded activations, lie within one
            step of each other.
    """
    found = compare(model, student, cases, track)
    share, level, name = found.lowest(found.outputs)
    if found.share < ENOUGH:
        _, worst_level, worst = found.lowest(found.shares[level])
        raise StageError(
            f"the exported graph does not compute what torch computes: {share:.2%} of the output '{name}' and "
            f"{found.inside:.2%} of the rounded activations lie within one step at optimization level '{level}'",
            where=worst,
            then=f"'{worst}' differs most, at level '{worst_level}': exclude the layers around it in `qat`",
        )
    return found


def compare(
    model: ModelProto,
    student: Quantized,
    cases: Sequence[Case],
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Agreement:
    """Count, level by level, how many numbers lie within one step.

    The bytes between kernels are read as well: they are what a fused kernel gives, so that reading them leaves the
    fusion as it is.
    """
    names = sorted(set(student.grids().places.activations))
    steps = {name: _step(name, cases, student.grids()) for name in cases[0].expected}
    shares: dict[str, dict[str, float]] = {}
    inside, largest = 1.0, 0.0
    with onnxfile.loadable(model) as plain, onnxfile.loadable(_with_bytes(model, names)) as opened:
        for level in track(list(runtime.LEVELS)):
            whole = runtime.session(plain, threads=1, level=level)
            inner = runtime.session(opened, threads=1, level=level)
            hits: dict[str, list[int]] = {}
            for case in cases:
                given = runtime.execute(whole, case.feed, list(case.expected))
                gaps = [differences.difference(value, given[name]) for name, value in case.expected.items()]
                largest = max(largest, *gaps)
                got = runtime.execute(inner, case.feed, [*case.expected, *(f"{name}:quantized" for name in names)])
                following = _Following(student, {name: got[f"{name}:quantized"] for name in names})
                for name, value in following.outputs(case.feed).items():
                    _count(hits, name, _close(value, got[name], steps[name]))
                for name, wanted in following.seen.items():
                    near = np.abs(got[f"{name}:quantized"].astype(np.int64) - wanted) <= 1
                    _count(hits, f"{name}:quantized", near)
            shares[level] = {name: near / max(1, total) for name, (near, total) in hits.items()}
            rounded = [hits[f"{name}:quantized"] for name in names]
            inside = min(inside, sum(near for near, _ in rounded) / max(1, sum(total for _, total in rounded)))
    return Agreement(shares, inside, largest, tuple(steps))


def _count(hits: dict[str, list[int]], name: str, close: NDArray[np.bool_]) -> None:
    counted = hits.setdefault(name, [0, 0])
    counted[0] += int(close.sum())
    counted[1] += close.size


def _close(expected: NDArray[np.generic], got: NDArray[np.generic], step: float) -> NDArray[np.bool_]:
    if expected.shape != got.shape:
        return np.zeros(expected.shape, bool)
    gap = np.abs(expected.astype(np.float64) - got.astype(np.float64))
    # Two grids a last bit apart in float32 are one grid.
    return np.asarray(gap <= step * (1 + 1e-4))


def _step(name: str, cases: Sequence[Case], quantizers: Quantizers) -> float:
    """Give the step of an output: of its grid, or of the one that 256 steps over its values would be."""
    spot = quantizers.places.activations.get(name)
    if spot is not None:
        return float(quantizers.grids[spot.grid].scale)
    if not np.issubdtype(cases[0].expected[name].dtype, np.floating):
        return 0.0
    values = [case.expected[name] for case in cases]
    low = min(float(np.nanmin(value, initial=0.0)) for value in values)
    high = max(float(np.nanmax(value, initial=0.0)) for value in values)
    return (high - low) / 255


def _with_bytes(model: ModelProto, names: Sequence[str]) -> ModelProto:
    twin = onnxfile.copied(model)
    twin.graph.output.extend(ValueInfoProto(name=f"{name}:quantized") for name in names)
    return twin


class _Following(fx.Interpreter):
    """Runs a rounding program, going on from given bytes wherever it rounds an activation.

    Attributes:
        seen: Activation → the integers that the program itself came to.
    """

    def __init__(self, student: Quantized, given: Mapping[str, NDArray[np.generic]]) -> None:
        super().__init__(student.program)
        self.student, self.given = student, given
        places = student.grids().places
        self.names = {f"rounded.{spot.node}": name for name, spot in places.activations.items()}
        self.seen: dict[str, NDArray[np.int64]] = {}

    def outputs(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Compute the outputs on some rows."""
        with torch.inference_mode():
            found = self.run(*(torch.from_numpy(np.array(feed[name])) for name in self.student.inputs))
        return {name: value.numpy() for name, value in zip(self.student.outputs, found, strict=True)}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = self.names.get(str(n.target)) if n.op == "call_module" else None
        if name is None:
            return value
        quantizers = self.student.grids()
        grid = quantizers.grids[quantizers.places.activations[name].grid]
        scale, zero_point = float(grid.scale), int(grid.zero_point)
        self.seen[name] = (value.double() / scale).round().long().numpy() + zero_point
        return (torch.from_numpy(self.given[name].astype(np.float32)) - zero_point) * scale
