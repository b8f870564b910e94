"""The QDQ inserter: which operators become integer kernels, 16-bit activations, other processors' integers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelpack.errors import StageError
from modelpack.numerics import graph, onnxfile, optimize, runtime
from modelpack.numerics.quantization import engine, hardware, layers, qdq
from modelpack.numerics.quantization.rewriting import alignment, prepare
from modelpack.numerics.quantization.settings import Evidence, Settings
from onnx_support import calibrated, graph_of, weights

FLOAT = TensorProto.FLOAT
SHAPE = [1, 16, 8, 8]


def node(operator, inputs, outputs, name="", **attributes):
    return helper.make_node(operator, list(inputs), list(outputs), name=name or operator.lower(), **attributes)


def numbers(*values):
    return np.array(values, np.int64)


def rows(model, count=4):
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": weights(*shape, seed=seed)} for seed in range(count)]


def run(model, feed):
    return runtime.execute(runtime.session(onnxfile.encode(model)), feed)["y"]


def made_of(model, **wanted):
    """Quantize a graph as the stage would."""
    prepared, _ = prepare.prepare(model)
    feeds = rows(model)
    settings = Settings(method="static", **wanted)
    evidence = Evidence(read=lambda _label, most: feeds[:most], calibration=calibrated(prepared, feeds))
    return engine.quantize(model, settings, evidence).outcome


def noise(model, made):
    """Relative error over the rows it was calibrated on."""
    pairs = [(run(model, feed), run(made, feed)) for feed in rows(model)]
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs)))


def between(*nodes, channels=16, constants=None, opset=18):
    """Put operators from ``a`` to ``b`` between two convolutions of single places."""
    held = {"w1": weights(16, 16, 1, 1, seed=1) / 3, "w2": weights(32, channels, 1, 1, seed=2) / 3, **(constants or {})}
    chain = [node("Conv", ["x", "w1"], ["a"], "first"), *nodes, node("Conv", ["b", "w2"], ["y"], "second")]
    return graph_of(chain, {"x": (SHAPE, FLOAT)}, {"y": None}, held, opset)


def gate(operator, **attributes):
    return [node(operator, ["a"], ["g"], **attributes), node("Mul", ["a", "g"], ["b"], "times")]


def squeeze_excite(operator):
    return [
        node("ReduceMean", ["a", "axes"], ["m"], keepdims=1),
        node("Conv", ["m", "e1"], ["n"], "squeeze"),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "e2"], ["e"], "excite"),
        node(operator, ["e"], ["g"]),
        node("Mul", ["a", "g"], ["b"], "times"),
    ]


EXCITE = {"axes": numbers(2, 3), "e1": weights(8, 16, 1, 1, seed=3), "e2": weights(16, 8, 1, 1, seed=4)}
BOTH = {"QLinearConv": 2}
INSIDE = {
    "SiLU": (between(*gate("Sigmoid")), BOTH | {"QLinearSigmoid": 1, "QLinearMul": 1}),
    "HardSwish": (between(node("HardSwish", ["a"], ["b"])), BOTH | {"QLinearAdd": 1, "QLinearMul": 1}),
    "squeeze and excite": (
        between(*squeeze_excite("Sigmoid"), constants=EXCITE),
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "squeeze and excite, hard": (
        between(*squeeze_excite("HardSigmoid"), constants=EXCITE),
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearAdd": 1, "QLinearMul": 1},
    ),
    "LeakyRelu": (between(node("LeakyRelu", ["a"], ["b"])), BOTH | {"QLinearLeakyRelu": 1}),
    "AveragePool": (between(node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2])), BOTH | {"QLinearAveragePool": 1}),
    "MaxPool": (between(node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])), BOTH | {"MaxPool": 1}),
    "a residual and a ReLU": (
        between(node("Add", ["a", "a"], ["s"]), node("Relu", ["s"], ["b"])), BOTH | {"QLinearAdd": 1},
    ),
    "a number": (
        between(node("Mul", ["a", "k"], ["b"]), constants={"k": np.array(-0.3, np.float32)}), BOTH | {"QLinearMul": 1},
    ),
    "Concat": (between(node("Concat", ["a", "a"], ["b"], axis=1), channels=32), BOTH | {"QLinearConcat": 1}),
    "Split": (
        between(
            node("Split", ["a"], ["l", "r"], axis=1, num_outputs=2), node("Concat", ["r", "l"], ["b"], axis=1),
        ),
        BOTH | {"Split": 1, "QLinearConcat": 1},
    ),
    "Slice": (
        between(
            node("Slice", ["a", "from", "to", "axis"], ["b"]), channels=8,
            constants={"from": numbers(4), "to": numbers(12), "axis": numbers(1)},
        ),
        BOTH | {"Slice": 1},
    ),
    "Resize": (
        between(
            node("Resize", ["a", "", "sizes"], ["b"], mode="nearest"),
            constants={"sizes": np.array([1, 1, 2, 2], np.float32)},
        ),
        BOTH | {"Resize": 1},
    ),
    "Gather": (
        between(node("Gather", ["a", "some"], ["b"], axis=1), channels=3, constants={"some": numbers(1, 5, 2)}),
        BOTH | {"Gather": 1},
    ),
    "Expand": (
        between(
            node("ReduceMax", ["a", "axes"], ["m"]), node("Expand", ["m", "shape"], ["b"]),
            constants={"axes": numbers(2, 3), "shape": numbers(1, 16, 4, 4)},
        ),
        BOTH | {"ReduceMax": 1, "Expand": 1},
    ),
    "Tile": (
        between(
            node("ReduceMin", ["a", "axes"], ["m"]), node("Tile", ["m", "times"], ["b"]),
            constants={"axes": numbers(2, 3), "times": numbers(1, 1, 4, 4)},
        ),
        BOTH | {"ReduceMin": 1, "Tile": 1},
    ),
    "Where": (
        between(
            node("Neg", ["x"], ["n"]), node("Greater", ["x", "n"], ["c"]), node("Where", ["c", "a", "a"], ["b"]),
        ),
        BOTH | {"QLinearWhere": 1},
    ),
    "upsampling": (
        between(
            node("ConvTranspose", ["a", "t"], ["u"], strides=[2, 2]), node("Relu", ["u"], ["b"]),
            constants={"t": weights(16, 16, 2, 2, seed=5)},
        ),
        {"QLinearConv": 3, "DepthToSpace": 1},
    ),
    "shuffled channels": (
        between(
            node("Reshape", ["a", "apart"], ["p"]), node("Transpose", ["p"], ["q"], perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["q", "again"], ["b"], "join"),
            constants={"apart": numbers(1, 4, 4, 8, 8), "again": numbers(1, 16, 8, 8)},
        ),
        BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_bytes_flow_through(name):
    model, expected = INSIDE[name]
    made = qdq_of(model)
    found = graph.operators(optimize.by_onnxruntime(made))
    assert {operator: found.get(operator, 0) for operator in expected} == expected
    # One rounding at the graph's input, one step back at its output: nothing in between is float.
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert noise(model, made) < 0.05


def qdq_of(model, **wanted):
    """Insert pairs alone: small graphs do not become smaller files."""
    prepared, _ = prepare.prepare(model)
    chosen = [layer.name for layer in layers.choose(prepared, "static", None, ()) if layer.quantized]
    marked = qdq.marks(prepared, chosen)
    extents = calibrated(prepared, rows(model)).extents(marked.measured, "minmax")
    return qdq.quantize(prepared, chosen, marked, extents, **wanted)


def test_bytes_do_not_flow_where_no_layer_reads_them():
    held = {"w1": weights(16, 16, 1, 1)}
    chain = [node("Conv", ["x", "w1"], ["a"], "first"), *gate("Sigmoid")]
    chain[-1].output[0] = "y"
    found = graph.operators(optimize.by_onnxruntime(qdq_of(graph_of(chain, {"x": (SHAPE, FLOAT)}, {"y": None}, held))))
    assert found["QLinearConv"] == 1
    assert not {"QLinearSigmoid", "QLinearMul"} & set(found)


def test_a_clip_around_zero_is_absorbed():
    clip = node("Clip", ["a", "low", "high"], ["b"])
    bounds = {"low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)}
    found = graph.operators(optimize.by_onnxruntime(qdq_of(between(clip, constants=bounds))))
    assert found["QLinearConv"] == 2
    assert "Clip" not in found


# 16-bit activations


def big(opset=17):
    held = {f"w{place}": weights(64, 64, 1, 1, seed=place) / 8 for place in range(3)}
    chain = [
        node("Conv", ["x", "w0"], ["a"], "one"), node("Relu", ["a"], ["b"]), node("Conv", ["b", "w1"], ["c"], "two"),
        node("Conv", ["c", "w2"], ["y"], "three"),
    ]  # fmt: skip
    return graph_of(chain, {"x": ([1, 64, 6, 6], FLOAT)}, {"y": [1, 64, 6, 6]}, held, opset)


def test_wide_layers_read_16_bits_and_the_opset_is_raised_for_them_alone():
    made = made_of(big(), wide=("tw*",))
    kinds = {item.name: item.data_type for item in made.model.graph.initializer if item.name.endswith(":zero")}
    assert kinds["b:zero"] == TensorProto.UINT16
    assert kinds["x:zero"] == kinds["c:zero"] == TensorProto.UINT8
    assert onnxfile.opset(made.model) == 21
    assert onnxfile.opset(made_of(big()).model) == 17
    assert {item.domain for item in made.model.opset_import} == {""}
    assert [text for text in made.warnings if "16-bit" in text and "one" in text and "two" in text]


def test_wide_activations_are_closer_to_the_float_ones():
    narrow, wide = made_of(big()), made_of(big(), wide=("*",))
    assert noise(big(), wide.model) < 0.9 * noise(big(), narrow.model)


def test_a_wide_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(StageError, match="named like 'four'"):
        made_of(big(), wide=("four",))
    with pytest.raises(StageError, match="named like 'one'"):
        made_of(big(), wide=("one",), exclude=("one",))


# Hardware


@pytest.mark.parametrize(("target", "kind"), [("neon", TensorProto.INT8), ("cuda", TensorProto.INT8), ("amx", 2)])
def test_activations_take_the_integers_of_the_target(target, kind):
    made = made_of(big(), target=target).model
    zeros = {item.name: item for item in made.graph.initializer if item.name in ("x:zero", "b:zero", "c:zero")}
    assert {item.data_type for item in zeros.values()} == {kind}
    if target == "cuda":
        assert not any(onnxfile.array(item).any() for item in zeros.values())
    assert noise(big(), made) < 0.05


def test_the_choice_is_explained():
    assert any("U8S8" in note for note in made_of(big(), target="vnni").notes)
    assert any("TensorRT" in note for note in made_of(big(), target="cuda").notes)


# Channels


@pytest.mark.parametrize(
    ("channels", "kernel", "outputs", "pays"),
    [(3, 3, 16, 1), (1, 5, 32, 1), (3, 7, 16, 0), (3, 3, 8, 0), (4, 3, 16, 0)],
)
def test_few_channels_are_padded_where_it_pays_and_nothing_changes(channels, kernel, outputs, pays):
    held = {"w": weights(outputs, channels, kernel, kernel)}
    chain = [node("Conv", ["x", "w"], ["y"], "stem", pads=[1] * 4, strides=[2, 2])]
    model = graph_of(chain, {"x": ([2, channels, 9, 9], FLOAT)}, {"y": None}, held)
    plain = qdq_of(model)
    made = alignment.aligned(plain, 4)
    assert graph.operators(made).get("Pad", 0) == pays
    for feed in rows(model):
        assert np.array_equal(run(plain, feed), run(made, feed))


def test_channels_that_something_else_reads_stay():
    held = {"w": weights(16, 3, 3, 3), "v": weights(16, 1, 3, 3)}
    chain = [
        node("Conv", ["x", "w"], ["a"], "stem"), node("Conv", ["x", "v"], ["b"], "grouped", group=3),
        node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    held["v"] = weights(18, 1, 3, 3)[:15]
    chain[2] = node("Concat", ["a", "b"], ["y"], axis=1)
    model = graph_of(chain, {"x": ([1, 3, 9, 9], FLOAT)}, {"y": None}, held)
    plain = qdq_of(model)
    assert graph.operators(alignment.aligned(plain, 4)) == graph.operators(plain)


def test_every_profile_has_a_reason():
    for name, profile in hardware.PROFILES.items():
        assert profile.name == name
        assert "S8" in profile.reason
    assert [name for name, profile in hardware.PROFILES.items() if profile.saturates] == ["avx2"]


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("looked_up", [True, False])
def test_weights_that_are_read_by_rows_and_by_columns_serve_both(method, looked_up):
    table = weights(16, 16)
    first = node("Gather", ["w", "i"], ["h"]) if looked_up else node("Gemm", ["x", "w"], ["h"], "inner", transB=1)
    last = node("Gemm", ["h", "w"], ["y"], "outer", transB=1) if looked_up else node("MatMul", ["h", "w"], ["y"])
    inputs = {"i": ([9], TensorProto.INT64)} if looked_up else {"x": ([9, 16], FLOAT)}
    model = graph_of([first, last], inputs, {"y": [9, 16]}, {"w": table})
    feed = {"i": numbers(*range(9))} if looked_up else {"x": weights(9, 16, seed=1)}
    prepared, _ = prepare.prepare(model)
    seen = calibrated(prepared, [feed]) if method == "static" else None
    evidence = Evidence(read=lambda _label, _most: [feed], calibration=seen)
    made = engine.quantize(model, Settings(method=method), evidence).outcome.model
    expected = run(model, feed)
    assert np.abs(run(made, feed) - expected).max() < 0.05 * np.abs(expected).max()


def test_a_layer_that_branches_alone_read_is_rounded_before_them():
    def branch(operator):
        made = [helper.make_tensor_value_info(f"{operator}_out", FLOAT, [1, 32, 6, 6])]
        return helper.make_graph([node(operator, ["c"], [f"{operator}_out"])], operator, [], made)

    fixed = helper.make_graph([node("Identity", ["k"], ["held"])], "fixed", [], branch("Relu").output)
    fixed.output[0].name = "held"
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "zero"], ["positive"]),
        node("If", ["positive"], ["y"], then_branch=branch("Relu"), else_branch=fixed),
    ]
    held = {"w": weights(32, 16, 3, 3, seed=1), "k": weights(1, 32, 6, 6), "zero": np.float32(0)}
    model = graph_of(nodes, {"x": (SHAPE, FLOAT)}, {"y": [1, 32, 6, 6]}, held)
    made = made_of(model).model
    assert noise(model, made) < 0.02
    assert "QLinearConv" in graph.operators(optimize.by_onnxruntime(made))
