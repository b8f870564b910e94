"""Channels of pictures padded for integer kernels: where it helps, and never where it could not run."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack.numerics import runtime
from modelpack.numerics.quantization.rewriting import alignment


def rounded(kind):
    """Give a convolution of three channels whose input is rounded to `kind`."""
    constants = {
        "scale": np.float32(0.1),
        "zero": np.array(100, kind),
        "weights": np.random.default_rng(0).integers(-127, 128, (16, 3, 3, 3)).astype(np.int8),
        "steps": np.float32(0.01),
        "middle": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["weights", "steps", "middle"], ["w"], name="w"),
        helper.make_node("Conv", ["d", "w"], ["y"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "rounded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("kind", "padded"), [(np.uint8, True), (np.uint16, False)])
def test_only_activations_of_eight_bits_are_padded(kind, padded):
    model = rounded(kind)
    made = alignment.aligned(model, 4)
    assert any(node.op_type == "Pad" for node in made.graph.node) == padded
    rows = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    (before,), (after,) = (
        runtime.session(item.SerializeToString(), threads=1).run(None, rows) for item in (model, made)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
