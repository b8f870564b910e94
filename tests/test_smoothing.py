import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelpack.errors import StageError
from modelpack.numerics import differences, onnxfile, runtime
from modelpack.numerics.quantization.adjustment import smoothing
from onnx_support import graph_of, weights

FLOAT = TensorProto.FLOAT
WIDTH = 12


def spread(generator, *shape):
    """Values whose last axis differs up to a thousandfold."""
    return (generator.standard_normal(shape) * 10.0 ** generator.uniform(-1.5, 1.5, shape[-1])).astype(np.float32)


NORMS = {
    "layer norm": [helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], name="norm", axis=-1)],
    "in parts": [
        helper.make_node("LpNormalization", ["x"], ["l"], name="unit"),
        helper.make_node("Mul", ["scale", "l"], ["m"], name="scaled"),
        helper.make_node("Add", ["m", "shift"], ["n"], name="shifted"),
    ],
    "without a shift": [
        helper.make_node("LpNormalization", ["x"], ["l"], name="unit"),
        helper.make_node("Mul", ["l", "scale"], ["n"], name="scaled"),
    ],
    "product": [
        helper.make_node("MatMul", ["x", "before"], ["m"], name="product"),
        helper.make_node("Add", ["shift", "m"], ["a"], name="shifted"),
        helper.make_node("Relu", ["a"], ["n"], name="relu"),
    ],
    "gemm": [
        helper.make_node("Reshape", ["x", "flat"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "before", "shift"], ["n"], name="gemm", transB=1),
    ],
}


def attention(seed, norm, residual=False, nodes=None):
    """Three products that read one tensor, which something makes that factors can be folded into."""
    generator = np.random.default_rng(seed)
    nodes = [
        *(nodes or NORMS[norm]),
        helper.make_node("MatMul", ["n", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], name="key"),
        helper.make_node("Gemm", ["n", "wv"], ["v"], name="value", transB=1)
        if norm == "gemm"
        else helper.make_node("MatMul", ["n", "wv"], ["v"], name="value"),
        helper.make_node("Mul", ["q", "k"], ["qk"], name="mixed"),
        helper.make_node("Add", ["qk", "n" if residual else "v"], ["s"], name="residual"),
        helper.make_node("Add", ["s", "v"], ["y"], name="sum"),
    ]
    constants = {
        "scale": spread(generator, WIDTH),
        "shift": spread(generator, WIDTH),
        "before": spread(generator, WIDTH, WIDTH),
        "flat": np.array([-1, WIDTH], np.int64),
        "wq": weights(WIDTH, WIDTH, seed=seed),
        "wk": weights(WIDTH, WIDTH, seed=seed + 1),
        "wv": weights(WIDTH, WIDTH, seed=seed + 2),
    }
    read = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in constants.items() if name in read}
    return graph_of(nodes, {"x": ([2, 5, WIDTH], FLOAT)}, {"y": [None] * (2 if norm == "gemm" else 3)}, kept)


def values(model, name, seed=1):
    tapped = differences.tapped(model, [name])
    feed = {"x": weights(2, 5, WIDTH, seed=seed)}
    return runtime.execute(runtime.session(onnxfile.encode(tapped)), feed, [name])[name].astype(np.float64)


def largest(model, name):
    found = np.abs(values(model, name))
    return found.max(axis=tuple(range(found.ndim - 1)))


LAYERS = ["query", "key", "value"]


@given(st.integers(0, 10_000), st.sampled_from(sorted(NORMS)), st.booleans(), st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=40, deadline=None)
def test_outputs_stay_and_outliers_move(seed, norm, residual, alpha):
    model = attention(seed, norm, residual)
    kept = model.SerializeToString()
    assert smoothing.channels(model, LAYERS) == ["n"]
    found = smoothing.factors(model, {"n": largest(model, "n")}, alpha)
    made = smoothing.smoothed(model, found)
    assert model.SerializeToString() == kept
    expected, got = values(model, "y"), values(made, "y")
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    smooth, rough = values(made, "n") * found["n"], values(model, "n")
    np.testing.assert_allclose(smooth, rough, rtol=1e-4, atol=2e-6 * np.abs(rough).max())
    nodes = {node.name: node for node in made.graph.node}
    assert ("n/Unsmooth" in nodes) == residual


def test_the_factors_are_those_of_the_paper():
    model = attention(1, "layer norm")
    held = {item.name: onnxfile.array(item).astype(np.float64) for item in model.graph.initializer}
    inputs = largest(model, "n")
    read = np.max([np.abs(held[name]).max(axis=1) for name in ("wq", "wk", "wv")], axis=0)
    found = smoothing.factors(model, {"n": inputs}, 0.5)["n"]
    np.testing.assert_allclose(found, np.sqrt(inputs / read), rtol=1e-5)
    made = smoothing.smoothed(model, {"n": found})
    after = {item.name: onnxfile.array(item).astype(np.float64) for item in made.graph.initializer}
    together = np.max([np.abs(after[name]).max(axis=1) for name in ("wq", "wk", "wv")], axis=0)
    np.testing.assert_allclose(largest(made, "n"), together, rtol=1e-3)


def test_a_channel_that_is_always_zero_is_divided_like_the_others():
    model = attention(1, "layer norm")
    inputs = largest(model, "n")
    inputs[3] = 0
    found = smoothing.factors(model, {"n": inputs}, 0.5)["n"]
    assert found[3] == pytest.approx(np.median(np.delete(found, 3)), rel=1e-6)
    assert (smoothing.factors(model, {"n": np.zeros(WIDTH)}, 0.5)["n"] == 1).all()


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e12])
def test_the_size_of_all_values_changes_all_factors_alike(size):
    model = attention(1, "layer norm")
    inputs = largest(model, "n").astype(np.float64)
    inputs[3] = 0
    one, other = (smoothing.factors(model, {"n": inputs * by}, 0.5)["n"] for by in (1.0, size))
    np.testing.assert_allclose(other, one * np.sqrt(size), rtol=1e-5)


def test_a_factor_stays_near_the_others():
    model = attention(1, "layer norm")
    inputs = np.ones(WIDTH)
    inputs[:2] = 1e-20, 1e20
    found = smoothing.factors(model, {"n": inputs}, 0.5)["n"]
    middle = np.median(found)
    np.testing.assert_allclose(found[:2], [middle * smoothing.SMALLEST, middle / smoothing.SMALLEST], rtol=1e-5)


BENT = ("Neg", "Abs")


def changed(what):
    other = {
        "gelu": [helper.make_node("Sigmoid", ["x"], ["n"], name="bend")],
        "sum": [helper.make_node("Add", ["x", "x"], ["n"], name="sum of two")],
        "input": [],
    }
    model = attention(2, "", nodes=other[what]) if what in other and what != "input" else attention(2, "layer norm")
    if what == "input":
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = "x" if name == "n" else name
    if what == "output":
        model.graph.output.append(helper.make_tensor_value_info("n", FLOAT, None))
    if what == "positions":
        shift = next(item for item in model.graph.initializer if item.name == "shift")
        model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "shift"], ["n"], name="shifted"))
        shift.CopyFrom(numpy_helper.from_array(weights(5, WIDTH), "shift"))
    if what == "branch":
        made = [helper.make_tensor_value_info("z", FLOAT, None)]
        inner = [helper.make_graph([helper.make_node(name, ["n"], ["z"], name=name)], name, [], made) for name in BENT]
        model.graph.node.append(
            helper.make_node("If", ["choice"], ["other"], name="if", then_branch=inner[0], else_branch=inner[1])
        )
    if what in ("scale", "wq"):
        model.graph.node.append(helper.make_node("Neg", [what], ["z"], name="other"))
        model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    return model


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("gelu", "Sigmoid makes it, which no factor can be folded into"),
        ("sum", "Add of two tensors makes it, which no factor can be folded into"),
        ("input", "it is an input of the model"),
        ("output", "it is an output of the model"),
        ("scale", "others read 'scale' too"),
        ("wq", "others read the weights 'wq' too"),
        ("branch", "a branch or loop reads it"),
        ("positions", "'shift' differs between positions"),
    ],
)
def test_what_cannot_be_divided_is_left_alone_with_the_reason(what, reason):
    (place,) = smoothing.places(changed(what), LAYERS)
    assert (place.reason, place.layers) == (reason, ("query", "key", "value"))
    assert place.to_json()["smoothed"] is False
    assert smoothing.channels(changed(what), LAYERS) == []


def test_only_inputs_of_chosen_layers_count():
    assert smoothing.channels(attention(1, "layer norm"), ["other"]) == []


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("n", WIDTH - 1, f"it has {WIDTH} channels"),
        ("q", WIDTH, "no matrix product with constant weights reads it"),
        ("nowhere", WIDTH, "no matrix product with constant weights reads it"),
        ("x", WIDTH, "it is an input of the model"),
    ],
)
def test_factors_that_do_not_fit_the_model_are_refused(name, count, said):
    with pytest.raises(StageError, match=f"'{name}' do not fit: {said}") as caught:
        smoothing.smoothed(attention(0, "product"), {name: np.ones(count, np.float32)})
    assert (caught.value.where, caught.value.then) == ("calibration", "calibrate again")
