"""Layers with 8-bit weights that onnxruntime nevertheless computes in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics import optimize
from modelpack.numerics.quantization import hardware, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.hardware import Profile
    from modelpack.numerics.quantization.layers import Layer


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
    tuned = optimize.by_onnxruntime(made)
    unpacked = {node.input[0] for node in tuned.graph.node if node.op_type == "DequantizeLinear"}
    held = {f"{layer.weights}:{side}:quantized": layer.name for layer in found for side in ("rows", "columns")}
    able = {*kernels.PRODUCTS, "Gather"}
    names = [held[name] for name in sorted(unpacked & set(held))]
    names += [layer.name for layer in found if layer.quantized and layer.operator not in able]
    if not names:
        return ()
    cause = " (it has no kernels for 16-bit activations, which these read or give)" if wide else ""
    listed = ", ".join(dict.fromkeys(names))
    return (f"these layers have 8-bit weights, but onnxruntime computes them in floating point{cause}: {listed}",)
