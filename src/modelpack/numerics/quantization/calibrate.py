"""From a float graph and rows to what its activations are, for the static method to take ranges from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelpack.numerics import masks
from modelpack.numerics.quantization import static
from modelpack.numerics.quantization.adjustment import adjust, smoothing
from modelpack.numerics.quantization.calibration import channels
from modelpack.numerics.quantization.calibration.measure import measure
from modelpack.numerics.quantization.calibration.record import Calibration
from modelpack.numerics.quantization.rewriting.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from onnx import ModelProto

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        operators: Only for these operators; chosen by the kind of network when None.
        histograms: Whether to count values, not only find the smallest and largest.
        mask: The input that tells padded positions apart; ``auto`` or ``none``.
        equalize: Whether channels are equalized first.
        smooth: Share of the activations' outliers to move into weights first; None for none.
    """

    operators: tuple[str, ...] | None = None
    histograms: bool = True
    mask: str = "auto"
    equalize: bool = False
    smooth: float | None = None


def calibrate(
    model: ModelProto,
    identity: str,
    asked: Asked,
    read: Callable[[str], Iterable[Feed]],
    inputs: Mapping[str, TensorSpec],
    *,
    device: str = "cpu",
) -> Calibration:
    """Measure the activations that the static method may round.

    Args:
        model: A float graph; it stays as it is.
        identity: What the calibration calls it.
        asked: What to measure.
        read: Reads the rows from the start; the argument says what for.
        inputs: What the model takes.
        device: Where it runs.

    Raises:
        StageError: When the graph cannot be quantized, there are no rows, or activations are not finite.
    """
    prepared, _ = prepare(model)
    mask = masks.chosen(asked.mask, inputs)
    seen = Calibration(identity, 0, {}, mask or "", asked.equalize)
    if asked.smooth is not None:
        even = adjust.adjusted(prepared, seen, asked.operators).model
        names = smoothing.channels(even, adjust.products(even, asked.operators))
        found = channels.largest(even, names, read("find outliers"), inputs, mask=mask, device=device)
        factors = smoothing.factors(even, found, asked.smooth)
        seen = replace(seen, smooth=asked.smooth, factors=factors)
    ready = adjust.adjusted(prepared, seen, asked.operators).model
    names = static.tensors(ready, asked.operators)
    measured = measure(ready, names, read("calibrate"), inputs, mask=mask, histograms=asked.histograms, device=device)
    return replace(seen, rows=measured.rows, tensors=measured.tensors)
