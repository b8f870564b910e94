"""Graphs of any origin, made ready to be quantized: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile, optimize, runtime
from modelpack.numerics.quantization.rewriting.prepare import prepare, raised
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "Tanh", "LeakyRelu"])
def test_a_product_that_was_fused_with_its_activation_is_taken_apart(operator):
    settings = {"alpha": 0.4} if operator == "LeakyRelu" else {}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="layer", alpha=0.5),
        helper.make_node(operator, ["h"], ["y"], name="after", **settings),
    ]
    held = {"w": weights(8, 6), "b": weights(6, seed=1)}
    fused = optimize.by_onnxruntime(graph_of(nodes, {"x": ([5, 8], FLOAT)}, {"y": [5, 6]}, held))
    assert [node.op_type for node in fused.graph.node] == ["FusedGemm"]
    made, _ = prepare(fused)
    assert [node.op_type for node in made.graph.node] == ["Gemm", operator]
    feed = {"x": weights(5, 8, seed=2)}
    one, two = (runtime.execute(runtime.session(onnxfile.encode(each)), feed)["y"] for each in (fused, made))
    assert two == pytest.approx(one, abs=1e-5)


def test_operators_of_other_domains_do_not_keep_a_graph_from_a_later_opset():
    model = graph_of(
        [
            helper.make_node("Gelu", ["x"], ["h"], name="bend", domain="com.microsoft"),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="product"),
        ],
        {"x": (["rows", 4], FLOAT)},
        {"y": ["rows", 3]},
        {"w": weights(4, 3)},
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made = raised(model, 21)
    x = weights(5, 4, seed=1)
    before, after = (runtime.execute(runtime.session(onnxfile.encode(item)), {"x": x})["y"] for item in (model, made))
    assert onnxfile.opset(made) == 21
    assert np.array_equal(before, after)
