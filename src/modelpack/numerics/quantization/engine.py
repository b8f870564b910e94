"""From a float graph to a quantized one that is smaller, runs, and is compared with the float one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, rows, runtime
from modelpack.numerics.measure.comparison import Comparison
from modelpack.numerics.quantization import backends, bfloat16, dynamic, half, layers, static
from modelpack.numerics.quantization.rewriting.prepare import prepare
from modelpack.numerics.quantization.weights import weight_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Outcome, Settings
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec


_HALF = ("float16", "bfloat16")

METHODS: Mapping[str, Callable[[ModelProto, Sequence[Layer], Settings, Evidence], Outcome]] = {
    "static": static.quantize,
    "dynamic": dynamic.quantize,
    "weight_only": weight_only.quantize,
    "float16": half.quantize,
    "bfloat16": bfloat16.quantize,
}
"""Method → function."""


@dataclass(frozen=True)
class Result:
    """A quantized graph.

    Attributes:
        outcome: The graph, and what its method has to tell.
        layers: Every layer with weights, and why it was not quantized if it was not.
        shrunk: Its bytes, as a fraction of the float graph's.
    """

    outcome: Outcome
    layers: tuple[Layer, ...]
    shrunk: float


def quantize(model: ModelProto, settings: Settings, evidence: Evidence) -> Result:
    """Quantize a graph.

    Args:
        model: A float graph; it stays as it is.
        settings: What to do.
        evidence: What data say about it.

    Raises:
        StageError: When the graph cannot be quantized, or no layer was.
    """
    prepared, notes = prepare(model)
    found = layers.choose(prepared, settings.method, settings.operators, settings.exclude)
    if not any(layer.quantized for layer in found):
        raise StageError(f"no layer can be quantized by '{settings.method}'", then=layers.left_out(found))
    functions = METHODS if settings.backend == "builtin" else backends.BACKENDS[settings.backend]
    outcome = functions[settings.method](prepared, found, settings, evidence)
    # Stored shapes let onnxruntime join each residual sum with its layer norm, which gains on GPUs and costs a
    # transformer on a processor a tenth of its time.
    made = onnxfile.infer(outcome.model) if settings.method in _HALF else onnxfile.unshaped(outcome.model)
    onnxfile.check(made)
    found = [replace(layer, reason=outcome.kept.get(layer.name, layer.reason)) for layer in found]
    if settings.backend != "builtin":
        found = backends.quantized(found, made)
    shrunk = onnxfile.size(made) / onnxfile.size(model)
    told = replace(outcome, model=made, notes=(*notes, *outcome.notes))
    return Result(told, tuple(found), shrunk)


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
