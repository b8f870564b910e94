import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


@pytest.fixture
def model():
    """Shapes that follow from constants, inside a branch too, beside weights larger than any shape."""

    def branch(name):
        node = helper.make_node("MatMul", ["flat", "weights"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    return graph_of(
        [
            helper.make_node("Reshape", ["x", "sizes"], ["flat"]),
            helper.make_node("ReduceMax", ["flat"], ["top"], keepdims=0),
            helper.make_node("Cast", ["top"], ["choice"], to=TensorProto.BOOL),
            helper.make_node("If", ["choice"], ["wide"], then_branch=branch("one"), else_branch=branch("two")),
            helper.make_node("Slice", ["wide", "first", "last", "axis"], ["y"]),
        ],
        {"x": (["batch", 4, 16], FLOAT)},
        {"y": None},
        {
            "sizes": np.array([-1, 64]), "weights": weights(64, 48),
            "first": np.array([3]), "last": np.array([10]), "axis": np.array([1]),
        },
    )  # fmt: skip


def test_shapes_are_those_that_the_whole_model_gives(model):
    before = model.SerializeToString(deterministic=True)
    expected = onnx.shape_inference.infer_shapes(onnxfile.unshaped(model), data_prop=True)
    assert onnxfile.infer(model) == expected
    assert model.SerializeToString(deterministic=True) == before
    known = {item.name: item.type.tensor_type.shape.dim for item in expected.graph.value_info}
    assert known["flat"][1].dim_value == 64
    assert known["wide"][1].dim_value == 48


def test_an_outline_lacks_nothing_but_the_values_of_large_tensors(model):
    outline = onnxfile.outline(model)
    assert outline.ByteSize() < 2000 < model.ByteSize()
    (hollow,) = (item for item in outline.graph.initializer if item.name == "weights")
    assert (list(hollow.dims), hollow.data_type) == ([64, 48], FLOAT)
    hollow.CopyFrom(next(item for item in model.graph.initializer if item.name == "weights"))
    assert outline == model
