"""Half precisions: what stays float32, what does not fit, and what the files hold."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from modelpack.errors import StageError
from modelpack.numerics import graph, onnxfile, runtime
from modelpack.numerics.quantization import engine, layers, operators
from modelpack.numerics.quantization.rewriting.prepare import prepare
from modelpack.numerics.quantization.settings import Evidence, Settings
from modelpack.stages.export import export
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig
from onnx_support import graph_of, onnx_artifact, torch_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT
X = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}


def chain(*middle, gain=1.0, opset=17):
    """A product, some operators in a row, and another product."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["v0"], name="first")]
    for number, operator in enumerate(middle):
        made = helper.make_node(operator, [f"v{number}"], [f"v{number + 1}"], name=f"mid{number}")
        nodes.append(made)
    nodes.append(helper.make_node("MatMul", [f"v{len(middle)}", "u"], ["y"], name="last"))
    values = {"w": weights(64, 64, seed=1) * gain, "u": weights(64, 32, seed=2) / 8}
    return graph_of(nodes, {"x": (["n", 64], FLOAT)}, {"y": ["n", 32]}, values, opset)


def made_of(proto, method, feeds=(), **wanted):
    return engine.quantize(proto, Settings(method=method, **wanted), Evidence(lambda _label, _limit: feeds)).outcome


def run(proto, feed=X):
    return runtime.execute(runtime.session(proto.SerializeToString()), feed)


def reads(proto, name):
    """Element types of what a node's inputs are, casts before it included."""
    makers = onnxfile.producers(proto.graph)
    node = next(node for node in proto.graph.node if node.name == name)
    casts = [makers[value] for value in node.input if value in makers and makers[value].op_type == "Cast"]
    return {onnxfile.attribute(cast, "to") for cast in casts}


# Float16


def test_operators_that_know_float32_only_are_kept_with_a_note():
    proto = chain("Celu", "Relu")
    made = made_of(proto, "float16")
    assert made.notes == ("stay float32, since onnxruntime has them in no other type: Celu",)
    assert reads(made.model, "mid0") == {TensorProto.FLOAT}
    np.testing.assert_allclose(run(made.model)["y"], run(proto)["y"], atol=0.1)


def test_outputs_stay_float32_whatever_makes_them():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "u"], ["kept"], name="kept"),
        helper.make_node("TopK", ["h", "k"], ["top", "places"], name="top", axis=-1),
    ]
    values = {"w": weights(64, 64, seed=1), "u": weights(64, 32, seed=2), "constant": weights(70), "k": np.array([3])}
    outputs = {"kept": ["n", 32], "top": ["n", 3], "constant": [70]}
    proto = graph_of(nodes, {"x": (["n", 64], FLOAT)}, outputs, values)
    before, after = run(proto), run(made_of(proto, "float16", exclude=("kept",)).model)
    for name in outputs:
        assert after[name].dtype == np.float32
        np.testing.assert_allclose(after[name], before[name], atol=0.3)


def test_an_input_that_is_an_output_too_passes_through():
    proto = chain("Relu")
    proto.graph.output.append(proto.graph.input[0])
    after = run(made_of(proto, "float16").model)
    assert (after["x"] == X["x"]).all()
    np.testing.assert_allclose(after["y"], run(proto)["y"], atol=0.1)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_usual_operators_are_converted(opset):
    assert not operators.without_float16(chain("Relu", "Sigmoid", "Softmax", "Tanh", opset=opset))


def test_optional_outputs_that_nobody_reads_keep_no_operator():
    proto = graph_of(
        [helper.make_node("LayerNormalization", ["x", "s"], ["h"], name="norm"), helper.make_node("MatMul", ["h", "w"], ["y"], name="m")],
        {"x": (["n", 8], FLOAT)},
        {"y": ["n", 8]},
        {"s": weights(8), "w": weights(8, 8)},
    )  # fmt: skip
    assert not operators.without_float16(proto)


@pytest.mark.parametrize("method", ["float16", "bfloat16"])
def test_named_operators_stay_float32(method):
    proto = chain("Softmax", "Tanh")
    made = made_of(proto, method, keep_operators=("Softmax",))
    if method == "float16":
        assert TensorProto.FLOAT in reads(made.model, "mid0")
        assert TensorProto.FLOAT16 not in reads(made.model, "mid0")
    np.testing.assert_allclose(run(made.model)["y"], run(proto)["y"], atol=0.02)
    with pytest.raises(StageError, match="has no operator 'Sofmax'") as told:
        made_of(proto, method, keep_operators=("Sofmax",))
    assert "Softmax" in told.value.then


def test_the_first_layer_whose_values_do_not_fit_is_named():
    proto = chain("Relu", gain=8e3)
    with pytest.raises(StageError, match=r"values reach .*float16 ends at 65504") as told:
        made_of(proto, "float16", [X])
    assert told.value.where == "first"
    assert "keep_operators" in told.value.then
    assert "bfloat16" in told.value.then
    fits = made_of(proto, "bfloat16", [X])
    assert np.isfinite(run(fits.model)["y"]).all()


def test_numbers_that_hide_positions_become_the_lowest(tmp_path):
    """The least float32 as exporters leave it: whole triangles of it, single ones, and what limits the sum of both."""
    net = torch_artifact(tmp_path, "nets.py:causal", nets.TOKENS)
    proto = onnxfile.read(run_stage(tmp_path, export, {}, model=net).file("model.onnx"))
    ids = np.random.default_rng(0).integers(0, 50, (4, 12))
    feed = {"input_ids": ids, "attention_mask": (np.arange(12) < [[12], [9], [5], [1]]).astype(np.int64)}
    made = made_of(proto, "float16", [feed])
    (note,) = made.notes
    floats = [item for item in proto.graph.initializer if item.data_type == FLOAT]
    beyond = [item for item in floats if np.abs(onnxfile.array(item)).max() > 65504]
    assert [item.dims[:] for item in beyond] == [[1, 64, 64], []]
    names = ", ".join(item.name for item in beyond)
    assert note == f"numbers beyond float16 became its largest or lowest, ±65504: {names}"
    np.testing.assert_allclose(run(made.model, feed)["output"], run(proto, feed)["output"], atol=5e-3)


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        ("Add", np.full(64, 1e5)),  # nothing below zero hides
        ("Add", np.linspace(-1e5, 0, 64)),  # other numbers than zeros beside the deep ones
        ("MatMul", np.full((64, 64), -1e5)),  # deep numbers that are multiplied with values
    ],
)
def test_weights_that_do_not_fit_are_refused(operator, value):
    middle = helper.make_node(operator, ["v0", "large"], ["v1"], name="middle")
    proto = chain("Relu")
    proto.graph.node[1].CopyFrom(middle)
    proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), "large"))
    with pytest.raises(StageError, match=r"magnitude 1e\+05 does not fit into float16") as told:
        made_of(proto, "float16")
    assert told.value.where == "large"


def test_limits_beyond_float16_are_its_own_and_what_stays_float32_keeps_its_constants():
    proto = chain("Relu", "Relu")
    proto.graph.node[1].CopyFrom(helper.make_node("Min", ["v0", "most"], ["v1"], name="least"))  # never converted
    proto.graph.node[2].CopyFrom(helper.make_node("Clip", ["v1", "", "ceiling"], ["v2"], name="clip"))
    for name, value in (("most", np.full(64, 1e6)), ("ceiling", np.array(1e6))):
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    made = made_of(proto, "float16", [X])
    assert made.notes == ("numbers beyond float16 became its largest or lowest, ±65504: ceiling",)
    np.testing.assert_allclose(run(made.model)["y"], run(proto)["y"], atol=0.3)


# Bfloat16


def test_bfloat16_holds_half_the_bytes_and_three_digits():
    proto = chain("Relu")
    made = made_of(proto, "bfloat16")
    facts = graph.facts(made.model)
    assert facts.precision == "bfloat16"
    assert facts.parameters == graph.facts(proto).parameters
    assert facts.tensor_bytes == {"bfloat16": 2 * (64 * 64 + 64 * 32)}
    assert [layer.dtype for layer in facts.layers] == ["bfloat16", "bfloat16"]
    assert any("become float32 while the model is loaded" in note for note in made.notes)
    expected, got = run(proto)["y"], run(made.model)["y"]
    assert 0 < np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_bfloat16_rounds_to_nearest():
    made = made_of(chain("Relu"), "bfloat16")
    tensors = {item.name: item for item in made.model.graph.initializer}
    stored = onnxfile.array(tensors["w:bfloat16"]).astype(np.float32)
    wanted = weights(64, 64, seed=1)
    assert np.array_equal(stored, wanted.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert (np.abs(stored - wanted) <= np.abs(wanted) * 2.0**-8).all()


def test_excluded_layers_keep_their_weights_in_either_half():
    proto = chain("Relu")
    for method in ("float16", "bfloat16"):
        made = made_of(proto, method, exclude=("first",))
        kept = [onnxfile.array(item) for item in made.model.graph.initializer if item.data_type == FLOAT]
        assert any(np.array_equal(item, weights(64, 64, seed=1)) for item in kept)


def test_every_layer_that_a_half_leaves_alone_has_a_reason():
    found = layers.choose(prepare(chain("Relu"))[0], "bfloat16", None, ("last",))
    assert [layer.reason for layer in found] == ["", "excluded by 'last'"]


# The stages


@pytest.mark.parametrize(("method", "sqnr"), [("float16", 55), ("bfloat16", 40)])
def test_a_network_halves_and_stays_close(tmp_path, method, sqnr):
    source = onnx_artifact(tmp_path, chain("Relu", "Tanh", "Softmax"))
    data = Rows({"x": np.random.default_rng(1).standard_normal((24, 64)).astype(np.float32)}, 8)
    wanted = {"method": method, "data": "val", "keep_operators": ["Softmax"]}
    made = run_stage(tmp_path, quantize_stage, wanted, model=source, data={"val": data})
    assert made.metrics["quantized_layers"] == made.metrics["quantizable_layers"] == 2
    assert made.metrics["quantize_shrink"] < 0.6
    assert made.metrics["quantize_sqnr_db"] > sqnr
    assert graph.facts(onnxfile.read(made.file("model.onnx"))).precision == method


def test_kept_operators_belong_to_the_halves():
    with pytest.raises(ValueError, match="`keep_operators` fits bfloat16 and float16, not 'dynamic'"):
        QuantizeConfig.model_validate({"method": "dynamic", "keep_operators": ["Softmax"]})
