"""How closely onnxruntime's integer kernels follow the torch model that rounds: in steps of the last bit (LSB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import ValueInfoProto
from torch import Tensor, fx

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
    quantizers = student.grids()
    expected = [_bytes(student, case.feed) for case in cases]
    names = sorted(set(quantizers.places.activations) & set(expected[0]))
    steps = {name: _step(name, cases, quantizers) for name in cases[0].expected}
    shares: dict[str, dict[str, float]] = {}
    inside, largest = 1.0, 0.0
    with onnxfile.loadable(model) as plain, onnxfile.loadable(_with_bytes(model, names)) as opened:
        for level in track(list(runtime.LEVELS)):
            whole = runtime.session(plain, threads=1, level=level)
            inner = runtime.session(opened, threads=1, level=level)
            hits: dict[str, list[int]] = {}
            for case, wanted in zip(cases, expected, strict=True):
                got = runtime.execute(whole, case.feed, list(case.expected))
                for name, value in case.expected.items():
                    largest = max(largest, differences.difference(value, got[name]))
                    _count(hits, name, _close(value, got[name], steps[name]))
                read = runtime.execute(inner, case.feed, [f"{name}:quantized" for name in names])
                for name in names:
                    close = np.abs(read[f"{name}:quantized"].astype(np.int64) - wanted[name]) <= 1
                    _count(hits, f"{name}:quantized", close)
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
        return quantizers.grids[spot.grid].scale
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


class _Recorder(fx.Interpreter):
    """Runs a program and keeps what its rounding modules give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and isinstance(value, Tensor):
            self.seen[str(n.target)] = value.detach()
        return value


def _bytes(student: Quantized, feed: Feed) -> dict[str, NDArray[np.int64]]:
    """Compute with torch the integers that every rounded activation stands for."""
    quantizers = student.grids()
    recorder = _Recorder(student.program)
    with torch.inference_mode():
        recorder.run(*(torch.from_numpy(np.array(feed[name])) for name in student.inputs))
    found = {}
    for name, spot in quantizers.places.activations.items():
        grid = quantizers.grids[spot.grid]
        values = recorder.seen.get(f"rounded.{spot.node}")
        if values is not None:
            found[name] = (values.double() / grid.scale).round().long().numpy() + grid.zero_point
    return found
