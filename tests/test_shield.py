import numpy as np
import pytest
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile, optimize, runtime
from modelpack.numerics.quantization import qdq
from modelpack.numerics.quantization.extent import Extent
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


def net(between=()):
    """Three convolutions in a row, and something behind the middle one."""
    tensors = {
        "w0": weights(8, 3, 1, 1),
        "w1": weights(8, 8, 3, 3, seed=1),
        "w2": weights(4, 8, 1, 1, seed=2),
        "low": np.float32(-1),
        "high": np.float32(2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "w1"], ["b0"], name="middle", pads=[1, 1, 1, 1]),
    ]
    for place, (operator, *more) in enumerate(between):
        nodes.append(helper.make_node(operator, [f"b{place}", *more], [f"b{place + 1}"], name=f"between{place}"))
    nodes.append(helper.make_node("Conv", [f"b{len(between)}", "w2"], ["y"], name="last"))
    return graph_of(nodes, {"x": (["batch", 3, 6, 6], FLOAT)}, {"y": ["batch", 4, 6, 6]}, tensors)


@pytest.mark.parametrize("between", [(), [("Relu",)], [("Clip", "low", "high")], [("Relu",), ("Clip", "low", "high")]])
def test_a_layer_left_in_float_stays_float_at_every_level(between):
    model = net(between)
    marked = qdq.marks(model, ["first", "last"])
    made = qdq.quantize(model, ["first", "last"], marked, dict.fromkeys(marked.measured, Extent(-20.0, 20.0)))
    feed = {"x": weights(2, 3, 6, 6, seed=3)}
    plain = _outputs(made, feed, "disabled")
    for level in runtime.LEVELS:
        np.testing.assert_allclose(_outputs(made, feed, level), plain, atol=2 * 40 / 255)
    names = [node.op_type for node in made.graph.node]
    assert names.count("LeakyRelu") == 1
    unprotected = onnxfile.copied(made)
    identity = next(node for node in unprotected.graph.node if node.op_type == "LeakyRelu")
    onnxfile.rename(unprotected.graph, {identity.input[0]: identity.output[0]})
    onnxfile.replace_nodes(unprotected.graph, [node for node in unprotected.graph.node if node.op_type != "LeakyRelu"])
    assert _keeps(made, "w1")
    assert not _keeps(unprotected, "w1"), "onnxruntime no longer rounds weights by itself; the identity is needless"


def test_other_layers_that_onnxruntime_rounds_by_itself_stay_float_too():
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="bend"),
        helper.make_node("Gemm", ["b", "w1"], ["c"], name="middle"),
        helper.make_node("Gemm", ["c", "w2"], ["y"], name="last"),
    ]
    tensors = {name: weights(8, 8, seed=seed) for seed, name in enumerate(("w0", "w1", "w2"))}
    model = graph_of(nodes, {"x": (["batch", 8], FLOAT)}, {"y": ["batch", 8]}, tensors)
    marked = qdq.marks(model, ["first", "last"])
    made = qdq.quantize(model, ["first", "last"], marked, dict.fromkeys(marked.measured, Extent(-20.0, 20.0)))
    assert _keeps(made, "w1")


@pytest.mark.parametrize("between", [(), [("Sigmoid",)]])
def test_layers_that_cannot_be_rounded_get_nothing(between):
    """They read floats, or lead to no bytes."""
    model = net(between)
    marked = qdq.marks(model, ["last"])
    made = qdq.quantize(model, ["last"], marked, dict.fromkeys(marked.measured, Extent(-20.0, 20.0)))
    assert "LeakyRelu" not in [node.op_type for node in made.graph.node]


def _outputs(model, feed, level):
    return runtime.execute(runtime.session(onnxfile.encode(model), threads=1, level=level), feed)["y"]


def _keeps(model, name):
    """Whether a tensor is still in the graph when onnxruntime has optimized it."""
    return any(item.name == name for item in optimize.by_onnxruntime(model).graph.initializer)
