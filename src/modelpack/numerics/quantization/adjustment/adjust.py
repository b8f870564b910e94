"""What is done to float weights before ranges are measured, so that they are easier to round; no output changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.numerics.quantization import layers
from modelpack.numerics.quantization.adjustment import smoothing
from modelpack.numerics.quantization.adjustment.equalization import equalize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.calibration.record import Calibration


@dataclass(frozen=True)
class Adjusted:
    """A model with other weights and the same outputs.

    Attributes:
        model: The model.
        results: What was done where, as JSON tables by name.
        warnings: What was asked for and could be done nowhere.
    """

    model: ModelProto
    results: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def adjusted(model: ModelProto, seen: Calibration, operators: Sequence[str] | None) -> Adjusted:
    """Adjust weights as a calibration did before it measured ranges.

    Args:
        model: A prepared float graph; it stays as it is.
        seen: The calibration.
        operators: What it looked at; chosen by the kind of network when None.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    warnings: list[str] = []
    if seen.equalize:
        model, pairs = equalize(model)
        results["equalization"] = [pair.to_json() for pair in pairs]
        if all(pair.reason for pair in pairs):
            warnings.append(f"`equalize` found no layers whose channels could be evened out: {_first(pairs)}")
    if seen.smooth is not None:
        places = smoothing.places(model, products(model, operators))
        results["smoothing"] = [place.to_json() for place in places]
        model = smoothing.smoothed(model, seen.factors)
        if not seen.factors:
            warnings.append(f"`smooth` found no activations whose outliers could be moved: {_first(places)}")
    return Adjusted(model, results, tuple(warnings))


def products(model: ModelProto, operators: Sequence[str] | None) -> list[str]:
    """Name the matrix products whose inputs are smoothed, whichever layers are left out later."""
    found = layers.choose(model, "static", operators, ())
    return [layer.name for layer in found if layer.quantized and layer.operator in smoothing.PRODUCTS]


def _first(left: Sequence[Any]) -> str:
    """Give the first reason; there may be none to give."""
    return next((item.reason for item in left if item.reason), "there are none in this model")
