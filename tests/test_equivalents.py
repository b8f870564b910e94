"""Operators written anew for integer kernels: the same numbers, in the form that is asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.quantization.rewriting import equivalents
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


def node(operator, inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, list(inputs), list(outputs), name=operator.lower(), **attributes)


def numbers(*values):
    return np.array(values, np.int64)


def mean(keep, *axes):
    nodes = [node("ReduceMean", ["x", "axes"], keepdims=keep)]
    return graph_of(
        nodes,
        {"x": ([1, 4, 5, 6], FLOAT)},
        {"y": None if axes else [1, 4, 1, 1][: 4 if keep else 2]},
        {"axes": numbers(*(axes or (-1, 2)))},
        opset=18,
    )


def gemm(bias, **attributes):
    shape = [3, 4] if not attributes.get("transA") else [4, 3]
    held = {"w": weights(5, 4) if attributes.get("transB") else weights(4, 5), "b": np.asarray(bias, np.float32)}
    return graph_of([node("Gemm", ["x", "w", "b"], **attributes)], {"x": (shape, FLOAT)}, {"y": [3, 5]}, held)


def padded(value, *pads, more=()):
    nodes = [node("Pad", ["x", "pads", "value"], ["p"]), node("Conv", ["p", "w"], pads=[1, 0, 0, 1])]
    held = {"pads": numbers(*pads), "value": np.array(value, np.float32), "w": weights(3, 2, 3, 3)}
    return graph_of(nodes, {"x": ([1, 2, 6, 6], FLOAT)}, dict.fromkeys(("y", *more)), held)


def upsampled(**attributes):
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["c"], **attributes), node("Relu", ["c"])]
    return graph_of(nodes, {"x": ([2, 3, 4, 5], FLOAT)}, {"y": None}, {"w": weights(3, 4, 2, 2), "b": weights(4)})


def pooled(*more):
    nodes = [node("Conv", ["x", "w"], ["c"]), node("MaxPool", ["c"], ["m"], kernel_shape=[2, 2]), node("Relu", ["m"])]
    return graph_of(nodes, {"x": ([1, 2, 6, 6], FLOAT)}, dict.fromkeys(("y", *more)), {"w": weights(3, 2, 3, 3)})


def clipped(late):
    """A clip behind a pooling, its bound made after it."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("MaxPool", ["c"], ["m"], kernel_shape=[2, 2]),
        node("ReduceMax", ["x" if late else "m"], ["most"], keepdims=0),
        node("Clip", ["m", "", "most"]),
    ]
    return graph_of(nodes, {"x": ([1, 2, 6, 6], FLOAT)}, {"y": None}, {"w": weights(3, 2, 3, 3)})


def whole_mean(kind):
    nodes = [
        node("Cast", ["x"], ["i"], to=kind),
        node("ReduceMean", ["i"], ["m"], axes=[2, 3]),
        helper.make_node("Cast", ["m"], ["y"], name="back", to=FLOAT),
    ]
    return graph_of(nodes, {"x": ([1, 4, 5, 6], FLOAT)}, {"y": [1, 4, 1, 1]}, {})


def padded_kernel():
    """Zeros around what a convolution takes as its weights."""
    nodes = [node("Neg", ["w"], ["n"]), node("Pad", ["x", "pads"], ["p"]), node("Conv", ["n", "p"])]
    held = {"pads": numbers(0, 0, 1, 1, 0, 0, 1, 1), "w": weights(1, 2, 9, 9)}
    return graph_of(nodes, {"x": ([3, 2, 3, 3], FLOAT)}, {"y": [1, 3, 5, 5]}, held)


def swish():
    return graph_of([node("HardSwish", ["x"])], {"x": ([3, 7], FLOAT)}, {"y": [3, 7]}, {})


CASES = {
    "mean": (mean(1), ["GlobalAveragePool"]),
    "mean, axes dropped": (mean(0), ["GlobalAveragePool", "Flatten"]),
    "mean of some places": (mean(1, 2), ["ReduceMean"]),
    "mean of channels too": (mean(0, 1, 2, 3), ["ReduceMean"]),
    "HardSwish": (swish(), ["HardSigmoid", "Mul"]),
    "Gemm": (gemm(weights(5)), ["Gemm"]),
    "Gemm with factors": (gemm(weights(5), alpha=0.5, beta=-2.0, transB=1), ["Gemm"]),
    "Gemm turned": (gemm(weights(5), transA=1), ["Transpose", "Gemm"]),
    "Gemm with a matrix added": (gemm(weights(3, 5), beta=0.5), ["MatMul", "Add"]),
    "Gemm with a factor and a column added": (gemm(weights(3, 1), transB=1, alpha=2.0), ["MatMul", "Add"]),
    "Gemm with a column added": (gemm(weights(3, 1), transB=1), ["MatMul", "Add"]),
    "zeros": (padded(0.0, 0, 0, 1, 2, 0, 0, 0, 1), ["Conv"]),
    "ones": (padded(1.0, 0, 0, 1, 2, 0, 0, 0, 1), ["Pad", "Conv"]),
    "zeros cut off": (padded(0.0, 0, 0, -1, 2, 0, 0, 0, 1), ["Pad", "Conv"]),
    "zeros that are an output": (padded(0.0, 0, 0, 1, 2, 0, 0, 0, 1, more=["p"]), ["Pad", "Conv"]),
    "upsampling": (upsampled(strides=[2, 2]), ["Conv", "Relu", "DepthToSpace"]),
    "upsampling that overlaps": (upsampled(strides=[1, 1]), ["ConvTranspose", "Relu"]),
    "a clip whose bound is made late": (clipped(late=True), ["Conv", "MaxPool", "ReduceMax", "Clip"]),
    "a clip whose bound hangs on what it clips": (clipped(late=False), ["Conv", "MaxPool", "ReduceMax", "Clip"]),
    "mean of integers": (whole_mean(TensorProto.INT32), ["Cast", "ReduceMean", "Cast"]),
    "mean of doubles": (whole_mean(TensorProto.DOUBLE), ["Cast", "ReduceMean", "Cast"]),
    "zeros around weights": (padded_kernel(), ["Neg", "Pad", "Conv"]),
    "pooling before a ReLU": (pooled(), ["Conv", "Relu", "MaxPool"]),
    "pooling that is an output": (pooled("m"), ["Conv", "MaxPool", "Relu"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_in_another_form(name):
    model, expected = CASES[name]
    model = onnx.shape_inference.infer_shapes(model)
    made = equivalents.rewritten(model)
    onnx.checker.check_model(made)
    assert [item.op_type for item in made.graph.node] == expected
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": weights(*shape, seed=3)}
    one, two = (
        runtime.execute(runtime.session(onnxfile.encode(each), level="disabled"), feed)["y"] for each in (model, made)
    )
    assert one.shape == two.shape
    assert two == pytest.approx(one, abs=1e-5)


def test_a_sum_that_the_graph_computes_becomes_a_node_of_its_own():
    nodes = [node("Neg", ["z"], ["n"]), node("Gemm", ["x", "w", "n"], beta=3.0)]
    model = graph_of(nodes, {"x": ([3, 4], FLOAT), "z": ([5], FLOAT)}, {"y": [3, 5]}, {"w": weights(4, 5)})
    made = equivalents.rewritten(model)
    assert [item.op_type for item in made.graph.node] == ["Neg", "Mul", "MatMul", "Add"]
    feed = {"x": weights(3, 4, seed=1), "z": weights(5, seed=2)}
    one, two = (runtime.execute(runtime.session(onnxfile.encode(each)), feed)["y"] for each in (model, made))
    assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_mean_without_its_axes_takes_any_number_of_rows(rows):
    nodes = [node("ReduceMean", ["x", "axes"], keepdims=0)]
    model = graph_of(nodes, {"x": (["n", 4, 5, 6], FLOAT)}, {"y": ["n", 4]}, {"axes": numbers(2, 3)}, opset=18)
    made = runtime.session(onnxfile.encode(equivalents.rewritten(model)))
    assert runtime.execute(made, {"x": weights(rows, 4, 5, 6)})["y"].shape == (rows, 4)
