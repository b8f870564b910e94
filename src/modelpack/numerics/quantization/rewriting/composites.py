"""Operators without an integer kernel, made of operators that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def hard_sigmoid(node: NodeProto, constant: Callable[[str, NDArray[np.generic]], str]) -> tuple[list[NodeProto], float]:
    """Write ``clip(alpha * x + beta, 0, 1)`` as ``clip(x + beta / alpha, 0, 1 / alpha)``, worth `alpha` a unit.

    The sum has an integer kernel that absorbs the clip, and the factor goes into the scale behind it.

    Args:
        node: A ``HardSigmoid``; its alpha is positive.
        constant: Adds a constant to the graph; gives its name.

    Returns:
        The nodes, and what one unit of their output is worth.
    """
    alpha = float(onnxfile.attribute(node, "alpha", 0.2))
    beta = float(onnxfile.attribute(node, "beta", 0.5))
    name, output = node.name, node.output[0]
    shift = constant(f"{name}:shift", np.array(beta / alpha, np.float32))
    bounds = [constant(f"{name}:{side}", np.array(at, np.float32)) for side, at in (("low", 0), ("high", 1 / alpha))]
    return [
        helper.make_node("Add", [node.input[0], shift], [f"{output}:shifted"], name=name),
        helper.make_node("Clip", [f"{output}:shifted", *bounds], [output], name=f"{name}:clip"),
    ], alpha


COMPOSED = {"HardSigmoid": hard_sigmoid}
"""Operator → function that writes a node anew."""
