"""Graphs that cannot be quantized, or not in part: which one, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import onnxfile
from modelpack.numerics.quantization import layers
from modelpack.numerics.quantization.rewriting import prepare
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


def net(**constants):
    held = {"w": weights(8, 3, 3, 3), "b": weights(8), "v": weights(8, 4), **constants}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="stem"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="head"),
    ]
    return graph_of(nodes, {"x": ([1, 3, 8, 8], FLOAT)}, {"y": [1, 4]}, held)


@pytest.mark.parametrize(
    ("name", "layer", "value"), [("v", "head", np.nan), ("w", "stem", np.inf), ("b", "stem", -np.inf)]
)
def test_a_layer_with_nan_or_infinity_is_named(name, layer, value):
    broken = {"w": weights(8, 3, 3, 3), "b": weights(8), "v": weights(8, 4)}
    broken[name].flat[3] = value
    prepared, _ = prepare.prepare(net(**broken))
    with pytest.raises(StageError, match=f"'{name}' of a layer holds NaN or infinity") as caught:
        layers.choose(prepared, "static", None, ())
    assert caught.value.where == layer
    assert {item.name: bool(item.reason) for item in layers.choose(prepared, "static", None, (layer,))}[layer]


def test_a_bias_that_the_graph_computes_leaves_a_convolution_float():
    model = net()
    model.graph.input.append(helper.make_tensor_value_info("z", FLOAT, [8]))
    model.graph.node.insert(0, helper.make_node("Neg", ["z"], ["n"], name="negated"))
    model.graph.node[1].input[2] = "n"
    prepared, _ = prepare.prepare(model)
    found = {item.name: item.reason for item in layers.choose(prepared, "static", None, ())}
    assert found == {"stem": "its bias is computed by the graph", "head": ""}


@pytest.mark.parametrize("operator", ["GRU", "LSTM", "RNN"])
def test_operators_without_integer_kernels_say_so(operator):
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[operator]
    held = {"w": weights(1, gates * 8, 4), "r": weights(1, gates * 8, 8)}
    nodes = [helper.make_node(operator, ["x", "w", "r"], ["y"], name="memory", hidden_size=8)]
    model = graph_of(nodes, {"x": ([5, 1, 4], FLOAT)}, {"y": [5, 1, 1, 8]}, held)
    prepared, _ = prepare.prepare(model)
    (layer,) = layers.choose(prepared, "static", None, ())
    assert layer.reason == f"onnxruntime computes {operator} in floating point only"


def test_weights_of_three_dimensions_say_why_they_stay():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="batch")]
    model = graph_of(nodes, {"x": ([2, 3, 4], FLOAT)}, {"y": [2, 3, 5]}, {"w": weights(2, 4, 5)})
    (layer,) = layers.choose(prepare.prepare(model)[0], "static", None, ())
    assert "3 dimensions" in layer.reason


def test_an_opset_that_cannot_be_converted_is_refused():
    nodes = [helper.make_node("Upsample", ["x", "scales"], ["y"], name="old", mode="linear")]
    held = {"scales": np.array([1, 1, 2, 2], np.float32)}
    model = graph_of(nodes, {"x": ([1, 1, 4, 4], FLOAT)}, {"y": None}, held, opset=9)
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(StageError, match="needs opset 17") as caught:
        prepare.prepare(model)
    assert "newer opset" in str(caught.value.then)


def test_a_model_beyond_one_message_is_not_converted(monkeypatch):
    monkeypatch.setattr(onnxfile, "LIMIT", 1000)
    model = net()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    with pytest.raises(StageError, match="too large to be converted to opset 17"):
        prepare.prepare(model)


def test_bytes_are_counted_beyond_one_message():
    model = net()
    assert onnxfile.size(model) == model.ByteSize()


def test_small_transposed_convolutions_keep_their_weights():
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])]
    for channels, reason in ((4, "fewer than 1,024 weights"), (64, "")):
        held = {"w": weights(16, channels, 3, 3)}
        model = graph_of(nodes, {"x": ([1, 16, 4, 4], FLOAT)}, {"y": None}, held)
        (layer,) = layers.choose(prepare.prepare(model)[0], "static", None, ())
        assert (reason in layer.reason) if reason else layer.quantized


def test_a_shared_constant_is_not_changed_for_others():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="scaled", alpha=2.0),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="plain"),
    ]
    model = graph_of(nodes, {"x": ([2, 4], FLOAT)}, {"y": [2, 4]}, {"w": weights(4, 4)})
    prepared, _ = prepare.prepare(model)
    held = {item.name: numpy_helper.to_array(item) for item in prepared.graph.initializer}
    one, two = prepared.graph.node
    assert np.array_equal(held[one.input[1]], 2 * held[two.input[1]])
    onnx.checker.check_model(prepared)


def test_layers_of_one_reason_are_told_in_one_breath():
    def layer(name, elements, reason=""):
        return layers.Layer(name, "Conv", f"{name}.w", elements, reason)

    told = layers.left_out([layer("a", 10), layer("b", 20, "slow"), layer("c", 3000, "slow"), layer("d", 5, "odd")])
    assert told == (
        "1 of 4 layers were quantized; left in float: c (3,000 weights) and 1 more: slow; d (5 weights): odd"
    )
