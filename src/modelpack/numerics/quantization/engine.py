"""From a float graph to a quantized one that is smaller, runs, and is compared with the float one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, optimize, rows, runtime
from modelpack.numerics.measure.comparison import Comparison
from modelpack.numerics.quantization import dynamic, embedding, half, layers, ranges, reconstruction, static
from modelpack.numerics.quantization.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer, Method
    from modelpack.numerics.quantization.ranges import Passes
    from modelpack.numerics.quantization.reconstruction import Gain
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

SMALLER = 0.9
"""A quantized file must be at most this fraction of the float one."""


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        method: ``static``, ``dynamic`` or ``float16``.
        operators: Quantize only these operators; chosen by the kind of network when None.
        exclude: Patterns of names of layers to leave alone.
        ranges: How ranges of activations are found: ``minmax`` or ``percentile``.
        percentile: Share of the values that a range holds, in per cent, for ``percentile``.
    """

    method: Method = "static"
    operators: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    ranges: Literal["minmax", "percentile"] = "minmax"
    percentile: float = 99.999


@dataclass(frozen=True)
class Fit:
    """What a reconstruction works on.

    Attributes:
        feeds: Reads the rows.
        seed: Seed of the choice of positions.
        track: Passes the layers' names through, showing progress.
    """

    feeds: Callable[[], Iterable[Feed]]
    seed: int = 0
    track: Callable[[Sequence[str]], Iterable[str]] = iter


@dataclass(frozen=True)
class Result:
    """A quantized graph.

    Attributes:
        model: The graph.
        layers: Every layer with weights, and why it was not quantized if it was not.
        notes: What was done to the graph beforehand.
        shrunk: Its bytes, as a fraction of the float graph's.
        floating: Layers with 8-bit weights that onnxruntime nevertheless computes in floating point.
        gains: What reconstruction did to each layer.
        kept: Whether the reconstructed weights were better for the whole model too, and are in it.
    """

    model: ModelProto
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]
    shrunk: float
    floating: tuple[str, ...]
    gains: tuple[Gain, ...] = ()
    kept: bool = True


def quantize(
    model: ModelProto, settings: Settings, passes: Passes, device: str = "cpu", fit: Fit | None = None
) -> Result:
    """Quantize a graph.

    Args:
        model: A float graph; it stays as it is.
        settings: What to do.
        passes: Reads the calibration rows from the start; only ``static`` calls it.
        device: Where calibration runs.
        fit: Rows to reconstruct layers on, for ``static``; weights are rounded to nearest when None.

    Raises:
        StageError: When the graph cannot be quantized, no layer was, or the file did not become smaller.
    """
    prepared, notes = prepare(model)
    found = layers.choose(prepared, settings.method, settings.operators, settings.exclude)
    chosen = [layer.name for layer in found if layer.quantized]
    if not chosen:
        raise StageError(f"no layer can be quantized by '{settings.method}'", then=_reasons(found))
    made = _rewritten(prepared, settings, found, passes, device)
    gains: tuple[Gain, ...] = ()
    kept = True
    if fit is not None:
        made, gains, kept = _fitted(prepared, made, chosen, fit, device)
    made = onnxfile.infer(made)
    onnxfile.check(made)
    shrunk = made.ByteSize() / model.ByteSize()
    if shrunk > SMALLER:
        raise StageError(
            f"the file did not become smaller: {made.ByteSize():,} bytes from {model.ByteSize():,}",
            then=f"{len(chosen)} of {len(found)} layers were quantized; {_reasons(found)}",
        )
    if settings.method == "float16":
        _check_survival(made, device)
    floating = _floating(made, found) if settings.method == "static" else ()
    return Result(made, tuple(found), tuple(notes), shrunk, floating, gains, kept)


def _fitted(
    model: ModelProto, plain: ModelProto, chosen: Sequence[str], fit: Fit, device: str
) -> tuple[ModelProto, tuple[Gain, ...], bool]:
    """Reconstruct layers, and say whether the whole model gained from what each of its layers gained from."""
    feeds, twin = list(fit.feeds()), onnxfile.copied(plain)
    gains = reconstruction.reconstruct(model, twin, chosen, feeds, seed=fit.seed, device=device, track=fit.track)
    before, after = (reconstruction.noise(model, made, feeds, device) for made in (plain, twin))
    return (twin, tuple(gains), True) if after <= before else (plain, tuple(gains), False)


def _check_survival(made: ModelProto, device: str) -> None:
    # Its rules for float16 on processors are young: some graphs crash the whole process instead of failing.
    with onnxfile.loadable(made) as place:
        if not runtime.survives(place, device):
            raise StageError(
                f"onnxruntime {runtime.ort.__version__} crashes when it opens the float16 graph on {device}",
                then="use `method: static` or `method: dynamic`, or exclude layers",
            )


def _floating(made: ModelProto, found: Iterable[Layer]) -> tuple[str, ...]:
    """Name the layers whose rounded weights onnxruntime turns back into floats before it multiplies."""
    tuned = optimize.by_onnxruntime(made)
    unpacked = {node.input[0] for node in tuned.graph.node if node.op_type == "DequantizeLinear"}
    held = {f"{layer.weights}:{side}:quantized": layer for layer in found for side in ("rows", "columns")}
    return tuple(held[name].name for name in sorted(unpacked & set(held)))


def _rewritten(model: ModelProto, settings: Settings, found: list[Layer], passes: Passes, device: str) -> ModelProto:
    if settings.method == "float16":
        return half.quantize(model, [layer.name for layer in found if not layer.quantized])
    chosen = [layer.name for layer in found if layer.quantized and layer.operator != "Gather"]
    model = embedding.quantize(model, [layer.name for layer in found if layer.quantized and layer.operator == "Gather"])
    if settings.method == "dynamic":
        return dynamic.quantize(model, chosen)
    flows = settings.operators is None and not layers.has_attention(model.graph)
    marked = static.marks(model, chosen, neighbours=flows or "Conv" in (settings.operators or ()))
    seen = ranges.extents(model, marked.measured, passes, device)
    if settings.ranges == "percentile":
        seen = ranges.percentiles(model, seen, settings.percentile, passes, device=device)
    return static.quantize(model, chosen, marked, seen)


def _reasons(found: Sequence[Layer]) -> str:
    """List the layers that stayed float, largest first, with reasons."""
    left = sorted((layer for layer in found if not layer.quantized), key=lambda layer: -layer.elements)
    if not found:
        return "the graph has no layer of an operator with weights that this method knows"
    if not left:
        return "every layer was quantized; the graph's weights are too few to matter"
    listed = "; ".join(f"{layer.name} ({layer.elements:,} weights): {layer.reason}" for layer in left[:5])
    return f"left in float: {listed}" + (f"; and {len(left) - 5} more" if len(left) > 5 else "")


def fidelity(
    before: ModelProto, after: ModelProto, feeds: Iterable[Feed], inputs: Mapping[str, TensorSpec], device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Compare the quantized graph's outputs with the float one's, both fully optimized, over some rows.

    Returns:
        Output → figures of the comparison (``sqnr_db``, ``cosine``, ``agreement`` where the output scores classes).

    Raises:
        StageError: When onnxruntime cannot run the quantized graph, or it gives NaN or infinity where the float one
            gave numbers.
    """
    names = [item.name for item in before.graph.output]
    compared = {name: Comparison(name, classes=None) for name in names}
    with onnxfile.loadable(before) as one, onnxfile.loadable(after) as two:
        reference, subject = runtime.session(one, device), runtime.session(two, device)
        for feed in feeds:
            expected, got = runtime.execute(reference, feed, names), runtime.execute(subject, feed, names)
            for name in names:
                _check_finite(name, expected[name], got[name])
                compared[name].update(expected[name], got[name], rows.count(feed, inputs))
    return {name: comparison.result() for name, comparison in compared.items()}


def _check_finite(name: str, expected: NDArray[np.generic], got: NDArray[np.generic]) -> None:
    if got.dtype.kind == "f" and np.isfinite(expected).all() and not np.isfinite(got).all():
        raise StageError(
            f"output '{name}' of the quantized model holds NaN or infinity where the float model's does not",
            then="exclude the layers with very large values, or choose another method",
        )
