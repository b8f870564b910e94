import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.measure import profile
from modelpack.numerics.quantization import qdq
from modelpack.numerics.quantization.extent import Extent
from modelpack.numerics.quantization.mixing import cost, sensitivity, switches
from modelpack.numerics.quantization.mixing.cost import Costs, Crossings
from modelpack.numerics.quantization.mixing.sensitivity import Noise
from modelpack.tensors import TensorSpec
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT
LAYERS = ("stem", "deep", "side", "head")
SETS = [kept for size in range(len(LAYERS) + 1) for kept in itertools.combinations(LAYERS, size)]


def net():
    """A residual net: a value that three nodes read, a clip, an addition, pooling, a bias, and a quantized output."""
    tensors = {
        "w0": weights(6, 3, 3, 3),
        "b0": weights(6, seed=1),
        "w1": weights(6, 1, 3, 3, seed=2),
        "w2": weights(6, 6, 1, 1, seed=3),
        "w3": weights(4, 6, seed=4),
        "b3": weights(4, seed=5),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a0", "low", "high"], ["a"], name="clip"),
        helper.make_node("Conv", ["a", "w1"], ["b"], name="deep", group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["c"], name="side"),
        helper.make_node("Add", ["b", "c"], ["d"], name="sum"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    return graph_of(nodes, {"x": (["batch", 3, 8, 8], FLOAT)}, {"y": ["batch", 4], "c": ["batch", 6, 8, 8]}, tensors)


MODEL = net()
FEEDS = [{"x": weights(4, 3, 8, 8, seed=seed)} for seed in (6, 7)]
RANGES = {"x": 4.0, "a": 6.0, "b": 16.0, "c": 12.0, "d": 20.0, "e": 4.0, "f": 4.0}


def marks(layers):
    return qdq.marks(MODEL, layers)


def write(layers):
    marked = marks(layers)
    return qdq.quantize(MODEL, layers, marked, {name: Extent(-RANGES[name], RANGES[name]) for name in marked.measured})


@pytest.fixture(scope="module")
def board():
    return switches.build(MODEL, write(LAYERS), marks(LAYERS))


def outputs(model, feed, level="disabled"):
    return runtime.execute(runtime.session(onnxfile.encode(model), threads=1, level=level), feed)


# Switches


@pytest.mark.parametrize("layers", SETS, ids="+".join)
def test_flags_make_the_graph_that_quantizing_these_layers_makes(board, layers):
    feed = FEEDS[0]
    flags = {switches.FLAGS: board.flags(layers, marks(layers))}
    wanted = outputs(write(layers) if layers else MODEL, feed)
    got = outputs(board.model, feed | flags)
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-5)


def test_each_layer_changes_the_output(board):
    still = outputs(board.model, FEEDS[0] | {switches.FLAGS: board.flags((), marks(()))})["y"]
    for name in LAYERS:
        flags = board.flags([name], marks([name]))
        assert 0 < flags.sum() < flags.size
        assert not np.array_equal(outputs(board.model, FEEDS[0] | {switches.FLAGS: flags})["y"], still)


def test_the_given_graphs_stay_as_they_are():
    before, twin = onnxfile.encode(MODEL), write(LAYERS)
    twin_before = onnxfile.encode(twin)
    switches.build(MODEL, twin, marks(LAYERS))
    assert (onnxfile.encode(MODEL), onnxfile.encode(twin)) == (before, twin_before)


# Errors


def test_the_noise_of_a_set_is_that_of_its_graph(board):
    noise = Noise(board, marks, FEEDS)
    sets = [("stem",), ("deep", "head"), LAYERS]
    for layers, found in zip(sets, noise.of_each(sets), strict=True):
        made = write(layers)
        wanted = np.concatenate([outputs(MODEL, feed)["y"] for feed in FEEDS]).astype(np.float64)
        got = np.concatenate([outputs(made, feed)["y"] for feed in FEEDS]).astype(np.float64)
        assert found == pytest.approx(np.square(got - wanted).sum() / np.square(wanted).sum(), rel=1e-3)


def test_sensitivities_are_the_same_every_time(board):
    noise = Noise(board, marks, FEEDS)
    first, again = noise.alone(LAYERS), noise.alone(LAYERS)
    assert first == again
    assert list(first) == list(LAYERS)
    assert all(error > 0 for error in first.values())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_rows_come_from_all_over_the_data(sizes, count):
    inputs = {"x": TensorSpec(shape=["batch", 2])}
    starts = np.cumsum([0, *sizes])
    whole = np.repeat(np.arange(starts[-1], dtype=np.float32)[:, None], 2, axis=1)
    feeds = [{"x": whole[start:end]} for start, end in itertools.pairwise(starts)]
    found = sensitivity.spread(feeds, inputs, count)
    taken = [row for feed in found for row in feed["x"][:, 0].tolist()]
    assert taken == sorted(set(taken))
    assert taken[0] == 0
    assert all(len(feed["x"]) <= sensitivity.PORTION for feed in found)
    if len(found) > 1:
        assert taken[-1] >= starts[-2], "the last batch is among them"


def test_batches_of_a_fixed_size_stay_whole():
    inputs = {"x": TensorSpec(shape=[9, 2])}
    found = sensitivity.spread([{"x": np.zeros((9, 2), np.float32)}] * 8, inputs, 18)
    assert [feed["x"].shape for feed in found] == [(9, 2)] * 2


# Costs


def test_a_value_crosses_where_floats_meet_bytes():
    assert cost.crossings(MODEL, marks(LAYERS)) == Crossings(("x",), ("c",)), "out at the output that is rounded"
    assert cost.crossings(MODEL, marks(("deep", "side", "head"))) == Crossings(("a",), ("c",))
    assert cost.crossings(MODEL, marks(("stem",))) == Crossings(("x",), ("a",))
    assert cost.crossings(MODEL, marks(())) == Crossings((), ())


def test_costs_add_up():
    costs = Costs({"one": 5.0, "two": -1.0}, 0.5, 0.25, {"a": 10, "b": 4}, 100.0)
    assert costs.of((), Crossings((), ())) == 0
    assert costs.of(("one", "two"), Crossings(("a", "b"), ("b",))) == 5 - 1 + 0.5 * 14 + 0.25 * 4


def test_every_layer_is_found_in_the_profile(tmp_path):
    found = [cost._sorted(kernels) for kernels in profile.fastest([MODEL, write(LAYERS)], FEEDS[0])]
    assert [set(one.layers) for one in found] == [set(), set()], "names tell no numbers unless they are given"
    tags = profile.tags(MODEL, LAYERS)
    graphs = [profile.tagged(made, tags) for made in (MODEL, write(LAYERS), write(LAYERS[::2]))]
    for one in map(cost._sorted, profile.fastest(graphs, FEEDS[0])):
        assert set(one.layers) == set(range(len(LAYERS)))
        assert one.total >= sum(one.layers.values()) > 0


def test_costs_are_measured_for_each_layer_and_value():
    found = cost.measure(MODEL, LAYERS, marks, write, {"x": FEEDS[0]["x"][:1]})
    assert set(found.layers) == set(LAYERS)
    assert found.sizes["x"] == 3 * 8 * 8
    assert found.entering > 0
    assert found.leaving > 0
    assert found.total > 0
