import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.quantization.adjustment import equalization
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT


def uneven(generator, *shape, axis=0):
    """Weights whose channels differ up to a thousandfold."""
    spread = 10.0 ** generator.uniform(-1.5, 1.5, shape[axis])
    return (
        generator.standard_normal(shape) * np.expand_dims(spread, [a for a in range(len(shape)) if a != axis])
    ).astype(np.float32)


BENDS = {
    "nothing": [],
    "relu": [helper.make_node("Relu", ["a"], ["b"], name="bend")],
    "leaky": [helper.make_node("LeakyRelu", ["a"], ["b"], name="bend", alpha=0.3)],
    "prelu": [helper.make_node("PRelu", ["a", "slope"], ["b"], name="bend")],
    "lower clip": [helper.make_node("Clip", ["a", "zero"], ["b"], name="bend")],
    "pool": [
        helper.make_node("Relu", ["a"], ["ab"], name="bend"),
        helper.make_node("MaxPool", ["ab"], ["b"], name="pool", kernel_shape=[2, 2]),
    ],
}


def convolutions(seed, bend, groups, last=None):
    """Three convolutions, the second one grouped or depthwise, with something between the first two."""
    generator = np.random.default_rng(seed)
    between = last or BENDS[bend]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="one", pads=[1] * 4),
        *between,
        helper.make_node("Conv", ["b" if between else "a", "w2", "b2"], ["c"], name="two", group=groups, pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("Conv", ["d", "w3"], ["y"], name="three"),
    ]
    constants = {
        "w1": uneven(generator, 8, 3, 3, 3),
        "b1": generator.standard_normal(8).astype(np.float32),
        "w2": uneven(generator, 16, 8 // groups, 3, 3),
        "b2": generator.standard_normal(16).astype(np.float32),
        "w3": uneven(generator, 4, 16, 1, 1, axis=1),
        "slope": generator.uniform(0, 1, (8, 1, 1)).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "six": np.array(6, np.float32),
    }
    read = {name for node in nodes for name in node.input}
    constants = {name: value for name, value in constants.items() if name in read}
    return graph_of(nodes, {"x": ([2, 3, 9, 9], FLOAT)}, {"y": [None] * 4}, constants)


def products(seed, gemm):
    """A product with a bias of its own or one added after it, and another product."""
    generator = np.random.default_rng(seed)
    one = (
        [helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="one", transB=1)]
        if gemm
        else [
            helper.make_node("MatMul", ["x", "w1"], ["p"], name="one"),
            helper.make_node("Add", ["b1", "p"], ["a"], name="add"),
        ]
    )
    nodes = [
        *one,
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="two"),
    ]
    first = uneven(generator, 12, 6)
    constants = {"w1": first if gemm else np.ascontiguousarray(first.T), "w2": uneven(generator, 12, 5)}
    constants["b1"] = generator.standard_normal(12).astype(np.float32)
    return graph_of(nodes, {"x": ([7, 6], FLOAT)}, {"y": [7, 5]}, constants)


def outputs(model, seed=1):
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return runtime.execute(runtime.session(onnxfile.encode(model)), {"x": weights(*shape, seed=seed)})["y"]


def same(one, two):
    scale = float(np.abs(one).max())
    np.testing.assert_allclose(two, one, atol=2e-5 * scale)


def ranges(model, groups):
    """Largest weights of each channel between the layers, seen from both sides, computed apart from the algorithm."""
    held = {item.name: onnxfile.array(item).astype(np.float64) for item in model.graph.initializer}
    one, two = np.abs(held["w1"]).max(axis=(1, 2, 3)), np.zeros(8)
    for channel, reader in itertools.product(range(8), range(16)):
        if reader // (16 // groups) == channel // (8 // groups):
            largest = np.abs(held["w2"][reader, channel % (8 // groups)]).max()
            two[channel] = max(two[channel], largest)
    return one, two


@given(st.integers(0, 10_000), st.sampled_from(sorted(BENDS)), st.sampled_from([1, 2, 8]))
@settings(max_examples=40, deadline=None)
def test_outputs_stay_and_ranges_become_equal(seed, bend, groups):
    model = convolutions(seed, bend, groups)
    made, pairs = equalization.equalize(model)
    assert [(pair.first, pair.second, pair.reason) for pair in pairs] == [("one", "two", ""), ("two", "three", "")]
    assert all(pair.factor > 1.5 for pair in pairs)
    same(outputs(model), outputs(made))
    before, after = ranges(model, groups), ranges(made, groups)
    assert np.abs(np.log(before[0] / before[1])).max() > 0.5
    np.testing.assert_allclose(after[0], after[1], rtol=1e-3)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_products_are_equalized_with_their_biases(seed, gemm):
    model = products(seed, gemm)
    made, pairs = equalization.equalize(model)
    assert [(pair.first, pair.second, pair.channels, pair.reason) for pair in pairs] == [("one", "two", 12, "")]
    same(outputs(model), outputs(made))
    held = {item.name: onnxfile.array(item) for item in made.graph.initializer}
    np.testing.assert_allclose(np.abs(held["w1"]).max(axis=int(gemm)), np.abs(held["w2"]).max(axis=1), rtol=1e-3)


def test_it_is_done_after_once_and_the_given_model_stays():
    model = convolutions(3, "relu", 8)
    kept = model.SerializeToString()
    once, _ = equalization.equalize(model)
    twice, pairs = equalization.equalize(once)
    assert model.SerializeToString() == kept
    assert once.SerializeToString() == equalization.equalize(model)[0].SerializeToString()
    assert all(pair.factor < 1.001 for pair in pairs)
    same(outputs(once), outputs(twice))


def test_a_channel_without_weights_keeps_its_bias():
    model = convolutions(4, "relu", 1)
    tensor = next(item for item in model.graph.initializer if item.name == "w1")
    values = onnxfile.array(tensor).copy()
    values[2] = 1e-12
    tensor.CopyFrom(helper.make_tensor("w1", FLOAT, values.shape, values.tobytes(), raw=True))
    made, _ = equalization.equalize(model)
    before, after = (
        {item.name: onnxfile.array(item) for item in one.graph.initializer}["b1"][2] for one in (model, made)
    )
    assert after == before
    same(outputs(model), outputs(made))


CLIP = [helper.make_node("Clip", ["a", "zero", "six"], ["b"], name="bend")]


def test_channels_cut_at_one_value_are_left_alone_with_the_reason():
    model = convolutions(5, "", 1, CLIP)
    made, pairs = equalization.equalize(model)
    assert "clip between them" in pairs[0].reason
    assert pairs[1].reason == ""
    same(outputs(model), outputs(made))


@pytest.mark.parametrize("what", ["output", "reader", "weights"])
def test_what_others_read_is_left_alone_with_the_reason(what):
    model = convolutions(6, "relu", 1)
    if what == "output":
        model.graph.output.append(helper.make_tensor_value_info("b", FLOAT, None))
    if what == "reader":
        model.graph.node.append(helper.make_node("Exp", ["b"], ["z"], name="other"))
        model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    if what == "weights":
        model.graph.node.append(helper.make_node("Neg", ["w2"], ["z"], name="other"))
        model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    made, pairs = equalization.equalize(model)
    expected = "others read 'w2' too" if what == "weights" else "others read the channels between them too"
    assert pairs[0].reason == expected
    assert pairs[0].factor == 1
    if what != "reader":
        same(outputs(model), outputs(made))


def test_a_product_after_pictures_is_no_pair():
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="two"),
    ]
    constants = {"w1": weights(9, 3, 1, 1), "w2": weights(9, 4)}
    model = graph_of(nodes, {"x": ([2, 3, 9, 9], FLOAT)}, {"y": [None] * 4}, constants)
    made, pairs = equalization.equalize(model)
    assert pairs == []
    assert made.SerializeToString() == model.SerializeToString()
