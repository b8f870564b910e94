"""Sums of two products in 16 bits: those cut off counted as scalars are, and weights that stay clear of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization import engine, qdq
from modelpack.numerics.quantization.extent import Extent
from modelpack.numerics.quantization.rewriting import prepare
from modelpack.numerics.quantization.saturation import narrowing, pairs
from modelpack.numerics.quantization.settings import Evidence, Settings
from onnx_support import calibrated, graph_of, weights

LOW, HIGH = -(2**15), 2**15 - 1


@st.composite
def factors(draw):
    groups, rows, positions, columns = (draw(st.integers(1, most)) for most in (2, 4, 3, 9))
    inputs = draw(arrays.arrays(np.uint8, (groups, positions, columns)))
    held = draw(arrays.arrays(np.int8, (groups, rows, columns), elements=st.integers(-128, 127)))
    return inputs, held


def by_scalars(inputs, held):
    """Add up in Python's integers, pair by pair; gives the share of pairs cut off per row."""
    groups, positions, columns = inputs.shape
    cut = np.zeros(held.shape[:2])
    for group, position, row in np.ndindex(groups, positions, held.shape[1]):
        for first in range(0, columns, 2):
            places = range(first, min(first + 2, columns))
            total = sum(int(inputs[group, position, place]) * int(held[group, row, place]) for place in places)
            cut[group, row] += not LOW <= total <= HIGH
    return cut / (positions * ((columns + 1) // 2))


@given(factors())
def test_the_pairs_cut_off_are_those_of_scalars(both):
    assert pairs.saturated(*both) == pytest.approx(by_scalars(*both))


@given(factors())
def test_tamed_weights_never_leave_16_bits(both):
    inputs, held = both
    tame = narrowing.within(np.maximum(held, -127))
    for extreme in (np.full_like(inputs, 255), inputs):
        assert pairs.saturated(extreme, tame).max() == 0
    assert np.all(np.abs(tame) <= np.abs(held.astype(int)))


@given(arrays.arrays(np.float32, (3, 5, 3, 3), elements=st.floats(-2, 2, width=32)))
def test_narrowed_scales_keep_every_pair_inside_16_bits(values):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    scales = narrowing.scales(node, values)
    steps = np.rint(values / scales[:, None, None, None]).astype(np.int8)
    padded = np.pad(steps, ((0, 0), (0, 3), (0, 0), (0, 0)))
    for held in (steps, padded):  # as it is, and with its channels aligned
        ordered = held.transpose(0, 2, 3, 1).reshape(1, len(held), -1)
        assert np.array_equal(narrowing.within(ordered), ordered)
    assert np.all(np.abs(steps) <= 127)


# Whole models


def test_padding_holds_the_zero_point():
    """Where that is 255 and all else is 0, the pairs of the padding alone overflow."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="one", pads=[1, 1, 1, 1])]
    model = graph_of(nodes, {"x": ([1, 4, 1, 1], TensorProto.FLOAT)}, {"y": None}, {"w": np.ones((8, 4, 3, 3), "f")})
    marked = qdq.marks(model, ["one"])
    made = qdq.quantize(model, ["one"], marked, dict.fromkeys(marked.measured, Extent(-1.0, 0.0)))
    assert pairs.shares(made, ["one"], [{"x": -np.ones((1, 4, 1, 1), "f")}]) == {"one": pytest.approx(16 / 18)}


def test_corrected_weights_are_tamed_in_the_order_of_the_kernel():
    held = {"w": np.ones((8, 4, 3, 3), "f"), "v": np.ones((8, 5), "f")}
    held["w"][:, 1::2] = -1  # neighbours in the file have one sign, and neighbours in the kernel two
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("Flatten", ["a"], ["b"], name="flat"),
        helper.make_node("Gemm", ["b", "v"], ["y"], name="two"),
    ]
    model = graph_of(nodes, {"x": ([1, 4, 3, 3], TensorProto.FLOAT)}, {"y": [1, 5]}, held)
    marked = qdq.marks(model, ["one", "two"])
    made = qdq.quantize(model, ["one", "two"], marked, dict.fromkeys(marked.measured, Extent(-1.0, 1.0)))
    narrowing.tame(made, ["one", "two"])
    tensors = {item.name: onnxfile.array(item) for item in made.graph.initializer}
    assert np.array_equal(tensors["w:rows:quantized"], 127 * held["w"])
    assert set(tensors["v:columns:quantized"].reshape(-1)) == {1, 127}


def hot():
    """A convolution whose channels agree, a depthwise one, a grouped one and a product: three of four overflow."""
    held = {
        "stem": np.abs(weights(16, 3, 3, 3, seed=1)),
        "deep": np.abs(weights(16, 1, 3, 3, seed=2)),
        "parts": np.abs(weights(16, 8, 3, 3, seed=3)),
        "head": np.abs(weights(16, 64, seed=4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem"),
        helper.make_node("Conv", ["a", "deep"], ["b"], name="deep", group=16),
        helper.make_node("Conv", ["b", "parts"], ["c"], name="parts", group=2),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("Gemm", ["d", "head"], ["y"], name="head", transB=1),
    ]
    return graph_of(nodes, {"x": ([1, 3, 8, 8], TensorProto.FLOAT)}, {"y": [1, 16]}, held)


def quantized(model, **wanted):
    feeds = [{"x": np.abs(weights(1, 3, 8, 8, seed=seed))} for seed in range(16)]
    prepared, _ = prepare.prepare(model)
    evidence = Evidence(read=lambda _label, most: feeds[:most], calibration=calibrated(prepared, feeds))
    return engine.quantize(model, Settings(method="static", **wanted), evidence).outcome


def test_layers_that_overflow_are_named_with_their_share():
    made = quantized(hot(), target="avx2")
    assert {item["layer"] for item in made.results["overflow"]} == {"stem", "parts", "head"}
    assert all(item["before"] > 0 for item in made.results["overflow"])
    told = next(text for text in made.warnings if "leave 16 bits" in text)
    assert "portable: true" in told
    assert "stem (" in told


def test_processors_with_vnni_are_not_bothered():
    made = quantized(hot(), target="vnni")
    assert "overflow" not in made.results
    assert not any("16 bits" in text for text in made.warnings)


@pytest.mark.parametrize("correction", ["none", "rounding"])
def test_a_portable_model_overflows_nowhere(correction):
    made = quantized(hot(), target="vnni", portable=True, correction=correction)
    table = {item["layer"]: (item["before"], item["after"]) for item in made.results["overflow"]}
    assert set(table) == {"stem", "parts", "head"}
    assert all(before > 0 and after == 0.0 for before, after in table.values())
    assert not any("16 bits" in text for text in made.warnings)
    assert any("3 of 4 layers were narrowed" in text for text in made.notes)


def test_layers_that_narrowing_others_brings_over_the_edge_are_narrowed_too():
    def rare(seed):
        held = np.random.default_rng(seed).uniform(-0.66, 0.66, (16, 16, 3, 3)).astype(np.float32)
        held[:, 0, 0, 0] = 1.0
        return held

    tensors = {"one": np.abs(weights(16, 3, 3, 3, seed=54)), "two": rare(154), "three": rare(254)}
    nodes = [
        helper.make_node("Conv", ["x", "one"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="bend"),
        helper.make_node("Conv", ["b", "two"], ["c"], name="two"),
        helper.make_node("Relu", ["c"], ["d"], name="bend again"),
        helper.make_node("Conv", ["d", "three"], ["y"], name="three"),
    ]
    edge = graph_of(nodes, {"x": ([1, 3, 8, 8], TensorProto.FLOAT)}, {"y": [1, 16, 2, 2]}, tensors)
    assert {item["layer"] for item in quantized(edge, target="avx2").results["overflow"]} == {"one", "two"}
    made = quantized(edge, target="vnni", portable=True)
    assert {item["layer"]: item["after"] for item in made.results["overflow"]} == {"one": 0, "two": 0, "three": 0}
    assert not made.warnings


def test_only_the_layers_that_overflow_are_narrowed():
    cold = hot()
    head = next(item for item in cold.graph.initializer if item.name == "head")
    alternating = weights(16, 64, seed=4) * np.where(np.arange(64) % 2, 1.0, 0.01)
    head.CopyFrom(numpy_helper.from_array(alternating.astype(np.float32), "head"))
    plain, made = (
        {item.name: numpy_helper.to_array(item) for item in quantized(cold, portable=on).model.graph.initializer}
        for on in (False, True)
    )
    assert np.array_equal(plain["head:rows:quantized"], made["head:rows:quantized"])
    assert np.array_equal(plain["deep:rows:quantized"], made["deep:rows:quantized"])
    assert (made["stem:rows:scale"] > plain["stem:rows:scale"]).all()
