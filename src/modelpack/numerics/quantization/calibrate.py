"""From a float graph and rows to what its activations are, for the static method to take ranges from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.numerics.quantization import static
from modelpack.numerics.quantization.calibration import masks
from modelpack.numerics.quantization.calibration.measure import measure
from modelpack.numerics.quantization.calibration.record import Calibration
from modelpack.numerics.quantization.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    """

    operators: tuple[str, ...] | None = None
    histograms: bool = True
    mask: str = "auto"


def calibrate(
    model: ModelProto,
    identity: str,
    asked: Asked,
    feeds: Iterable[Feed],
    inputs: Mapping[str, TensorSpec],
    *,
    device: str = "cpu",
) -> Calibration:
    """Measure the activations that the static method may round.

    Args:
        model: A float graph; it stays as it is.
        identity: What the calibration calls it.
        asked: What to measure.
        feeds: The rows.
        inputs: What the model takes.
        device: Where it runs.

    Raises:
        StageError: When the graph cannot be quantized, there are no rows, or activations are not finite.
    """
    prepared, _ = prepare(model)
    mask = masks.padding(asked.mask, inputs)
    names = static.tensors(prepared, asked.operators)
    found = measure(prepared, names, feeds, inputs, mask=mask, histograms=asked.histograms, device=device)
    return Calibration(identity, found.rows, found.tensors, mask or "")
