"""Layers with 8-bit weights that onnxruntime nevertheless computes in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics import optimize, stored
from modelpack.numerics.quantization import hardware, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.hardware import Profile
    from modelpack.numerics.quantization.layers import Layer


def weights(model: ModelProto) -> frozenset[str]:
    """Name the constants of a byte or less that onnxruntime turns into floats before it multiplies by them.

    Raises:
        StageError: When onnxruntime cannot load the model.
    """
    return frozenset(layer.weights.name for layer in stored.layers(optimize.by_onnxruntime(model)) if layer.dequantized)


def told(
    made: ModelProto, found: Sequence[Layer], profile: Profile, device: str, *, wide: Sequence[str] = ()
) -> tuple[str, ...]:
    """Name the layers whose rounded weights are turned back into floats before they multiply.

    Args:
        made: A quantized graph.
        found: All layers.
        profile: The hardware that it was made for; this machine can only tell what happens on its own kind.
        device: Where models run here.
        wide: Names of the layers that read 16-bit activations.

    Returns:
        A warning, or nothing.
    """
    if hardware.profile("auto", device).integer is not profile.integer:
        return ()
    held = {f"{layer.weights}:{side}:quantized": layer.name for layer in found for side in ("rows", "columns")}
    able = {*kernels.PRODUCTS, "Gather"}
    names = [held[name] for name in sorted(weights(made) & set(held))]
    names += [layer.name for layer in found if layer.quantized and layer.operator not in able]
    if not names:
        return ()
    cause = " (it has no kernels for 16-bit activations, which these read or give)" if wide else ""
    listed = ", ".join(dict.fromkeys(names))
    return (f"these layers have 8-bit weights, but onnxruntime computes them in floating point{cause}: {listed}",)
