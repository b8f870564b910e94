"""Weights in blocks: the grids, the three ways of rounding, the two forms in a graph, and the stage."""

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelpack.errors import RecipeError, StageError
from modelpack.numerics import graph, onnxfile, prediction, rows, runtime
from modelpack.numerics.quantization import engine, layers
from modelpack.numerics.quantization.rewriting.prepare import prepare
from modelpack.numerics.quantization.settings import Evidence, Settings
from modelpack.numerics.quantization.weights import blocks, gptq, hqq, moments, nbits, weight_only
from modelpack.server.engine import Engine
from modelpack.server.signature import read as read_signature
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig
from onnx_support import graph_of, weights
from support import Rows, run_stage

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
few = settings(max_examples=40, deadline=None)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 70), st.sampled_from([16, 32]), st.sampled_from([4, 8]))


def drawn(rows_, columns, seed, tail=2):
    """Weights with outliers."""
    generator = np.random.default_rng(seed)
    return generator.standard_t(tail + 1, (rows_, columns)) * generator.uniform(0.01, 3, (rows_, 1))


# Blocks


@few
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8]), st.integers(0, 99))
def test_packed_codes_come_back(outer, inner, bits, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (outer, inner)).astype(np.uint8)
    packed = blocks.pack(codes, bits)
    assert packed.shape == (outer, -(-inner * bits // 8))
    assert np.array_equal(blocks.unpack(packed, bits, inner), codes)


@few
@given(shapes, st.integers(0, 99))
def test_rounding_to_nearest_stays_within_half_a_step_and_keeps_zeros(shape, seed):
    count, columns, size, bits = shape
    real = drawn(count, columns, seed)
    real[:, ::5] = 0.0
    made = blocks.nearest(real, bits, size)
    steps = np.repeat(made.grid.scales, size, axis=1)[:, :columns]
    gap = np.abs(made.real() - real)
    # The zero is rounded too, which costs the far end of a range up to another half step.
    assert (gap <= 1.02 * steps).all()
    assert (made.real()[:, ::5] == 0.0).all()
    assert made.codes.max() <= made.grid.top


@few
@given(shapes, st.integers(0, 99))
def test_what_fills_up_the_last_block_stands_for_zero(shape, seed):
    count, columns, size, bits = shape
    made = blocks.nearest(drawn(count, columns, seed), bits, size)
    whole = made.grid.real(made.codes.astype(np.float64)).reshape(count, -1)
    assert (whole[:, columns:] == 0.0).all()


@few
@given(shapes, st.integers(0, 99))
def test_a_fitted_grid_is_never_worse_than_one_that_spans_the_block(shape, seed):
    count, columns, size, bits = shape
    cells = blocks.cut(drawn(count, columns, seed), size)
    power = np.random.default_rng(seed).uniform(0, 2, cells.shape[1:])
    for importance in (None, power):
        found = blocks.loss(cells, blocks.fitted(cells, bits, importance), importance)
        assert (found <= blocks.loss(cells, blocks.spanning(cells, bits), importance)).all()


def test_scales_are_halves_only_where_all_of_them_are_normal_numbers():
    usual, tiny = np.array([[0.013, 0.5]]), np.array([[0.013, 1e-9]])
    assert np.array_equal(blocks.storable(usual), usual.astype(np.float16).astype(np.float64))
    assert np.array_equal(blocks.storable(tiny), tiny.astype(np.float32).astype(np.float64))
    assert blocks.storable(np.zeros((1, 1))) == 1.0


def test_one_outlier_spoils_its_block_only():
    real = np.full((1, 64), 0.1)
    real[0, :32] = np.linspace(-0.1, 0.1, 32)
    clean = blocks.nearest(real, 4, 32).real()
    real[0, 40] = 100.0
    spoiled = blocks.nearest(real, 4, 32).real()
    assert np.array_equal(clean[0, :32], spoiled[0, :32])
    assert np.abs(spoiled[0, 32:40] - 0.1).min() > 0.09


# Half-quadratic quantization


@few
@given(shapes, st.integers(0, 99))
def test_hqq_is_nowhere_worse_in_its_own_measure(shape, seed):
    count, columns, size, bits = shape
    cells = blocks.cut(drawn(count, columns, seed), size)
    plain = blocks.spanning(cells, bits)
    assert (hqq.objective(cells, hqq.fitted(cells, bits)) <= hqq.objective(cells, plain)).all()


def test_hqq_lets_outliers_go():
    cells = blocks.cut(drawn(64, 64, 3, tail=1), 32)
    plain, fitted = blocks.spanning(cells, 4), hqq.fitted(cells, 4)
    assert hqq.objective(cells, fitted).sum() < 0.98 * hqq.objective(cells, plain).sum()


@pytest.mark.parametrize("value", [-3.0, -0.4, 0.0, 0.02, 0.7, 5.0])
def test_the_shrinkage_minimizes_norm_and_distance(value):
    # The published operator is one step of the fixed point, which is close where beta is large.
    beta = 50.0
    grid = np.linspace(-6, 6, 240_001)
    best = grid[np.argmin(np.abs(grid) ** hqq.NORM + beta / 2 * (grid - value) ** 2)]
    assert abs(hqq.shrunk(np.array([value]), beta)[0] - best) < 0.03


# GPTQ


def moment_of(columns, seed, count=60):
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((columns, columns)) * 0.4 + np.eye(columns)
    inputs = generator.standard_normal((count, columns)) @ mixed * generator.uniform(0.05, 4, columns)
    return inputs, inputs.T @ inputs


@few
@given(shapes, st.integers(0, 99))
def test_gptq_is_nowhere_worse_where_the_inputs_are(shape, seed):
    count, columns, size, bits = shape
    real = drawn(count, columns, seed)
    _, moment = moment_of(columns, seed)
    firm = moment + gptq.DAMPING * np.trace(moment) / columns * np.eye(columns)
    found, plain = gptq.rounded(real, moment, bits, size), blocks.nearest(real, bits, size)
    limit = gptq.error(plain, real, firm)
    assert (gptq.error(found, real, firm) <= limit * (1 + 1e-9) + 1e-12).all()


def test_gptq_moves_the_outputs_far_less():
    real, (inputs, moment) = drawn(24, 128, 1), moment_of(128, 1, count=400)
    found, plain = gptq.rounded(real, moment, 4, 32), blocks.nearest(real, 4, 32)
    direct = np.square(inputs @ (found.real().astype(np.float64) - real).T).sum(axis=0)
    np.testing.assert_allclose(gptq.error(found, real, moment), direct, rtol=1e-6)
    assert gptq.error(found, real, moment).sum() < 0.4 * gptq.error(plain, real, moment).sum()


def test_gptq_takes_inputs_that_are_always_zero():
    real, moment = drawn(4, 32, 1), np.zeros((32, 32))
    assert np.isfinite(gptq.rounded(real, moment, 4, 16).real()).all()


def test_moments_do_not_depend_on_passes_and_leave_padding_out():
    hidden = weights(6, 5, seed=1)
    proto = graph_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], name="words"),
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
            helper.make_node("Cast", ["attention_mask"], ["m"], name="cast", to=FLOAT),
        ],
        {"ids": (["n", "s"], INT64), "attention_mask": (["n", "s"], INT64)},
        {"y": ["n", "s", 3], "m": ["n", "s"]},
        {"table": hidden, "w": weights(5, 4, seed=2), "v": weights(4, 3, seed=3)},
    )
    ids = np.array([[1, 2, 0], [3, 4, 5], [5, 5, 0]])
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    feeds = [{"ids": ids[:2], "attention_mask": mask[:2]}, {"ids": ids[2:], "attention_mask": mask[2:]}]
    evidence = Evidence(lambda _label, _limit: feeds)
    inputs = hidden[ids[mask > 0]].astype(np.float64)
    wanted = {"x": inputs.T @ inputs}
    relu = np.maximum(inputs @ weights(5, 4, seed=2), 0)
    wanted["r"] = relu.T @ relu
    for budget in (1, 2**20):
        found = moments.gather(proto, {"x": 5, "r": 4}, evidence, budget)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(StageError, match="no rows"):
        moments.gather(proto, {"x": 5}, Evidence())


# Graphs


def mixture(columns=40, opset=17):
    """Products of both directions with and without bias, a tied embedding, shared weights and a convolution."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="words"),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["b"], name="two"),
        helper.make_node("Reshape", ["b", "flat"], ["c"], name="reshape"),
        helper.make_node("Gemm", ["c", "table", "bias"], ["d"], name="head", transB=1),
        helper.make_node("Gemm", ["c", "v"], ["e"], name="plain"),
        helper.make_node("Reshape", ["c", "picture"], ["p"], name="fold"),
        helper.make_node("Conv", ["p", "kernel"], ["q"], name="conv"),
        helper.make_node("ConvTranspose", ["q", "wide"], ["u"], name="up"),
    ]
    values = {
        "table": weights(70, columns, seed=1),
        "w": weights(columns, columns, seed=2) / 5,
        "v": weights(columns, 9, seed=3),
        "bias": weights(70, seed=4),
        "kernel": weights(8, columns, 1, 1, seed=5),
        "wide": weights(8, 6, 1, 1, seed=6),
        "flat": np.array([-1, columns]),
        "picture": np.array([0, 0, 1, 1]),
    }
    outputs = {"d": ["m", 70], "e": ["m", 9], "u": ["m", 6, 1, 1]}
    return graph_of(nodes, {"ids": (["n", "s"], INT64)}, outputs, values, opset)


IDS = {"ids": np.array([[3, 0, 69], [7, 8, 9]])}


def feeds(_label, _limit):
    generator = np.random.default_rng(0)
    return [{"ids": generator.integers(0, 70, (4, 5))} for _ in range(4)]


def rewritten(proto, **wanted):
    prepared, _ = prepare(proto)
    chosen = Settings(method="weight_only", **wanted)
    found = layers.choose(prepared, "weight_only", None, ())
    return prepared, weight_only.quantize(prepared, found, chosen, Evidence(feeds))


def run(proto, feed, level="all"):
    return runtime.execute(runtime.session(proto.SerializeToString(), level=level), feed)


@pytest.mark.parametrize("form", ["nbits", "qdq"])
@pytest.mark.parametrize(("bits", "columns", "rounding"), [(4, 40, "gptq"), (4, 64, "hqq"), (8, 40, "nearest")])
def test_the_written_graph_computes_what_its_codes_stand_for(bits, columns, rounding, form, monkeypatch):
    monkeypatch.setattr(nbits, "ACCURACY", 1)  # inputs stay float32
    prepared, outcome = rewritten(mixture(columns), bits=bits, form=form, rounding=rounding, group=16)
    made, twin = outcome.model, onnxfile.copied(prepared)
    onnxfile.check(made)
    fixed = {item.name: onnxfile.array(item) for item in made.graph.initializer}
    for name, side in (("w", "columns"), ("v", "columns"), ("table", "rows")):
        real = stood_for(fixed, f"{name}:{side}", columns, bits)
        replace(twin, name, real if side == "rows" else real.T)
    if bits == 8:  # the lookup has bytes with a scale per row, and is not tied any more
        replace(twin, "words", fixed["table:lookup:quantized"] * fixed["table:lookup:scale"], node="words")
    expected, got = run(twin, IDS, "disabled"), run(made, IDS, "disabled")
    for name in ("d", "e"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-4 * np.abs(expected[name]).max())


def stood_for(fixed, stem, columns, bits):
    """Read a product's constants of either form back: real weights, one row per output."""
    if f"{stem}:blocks" not in fixed:
        scales, packed = fixed[f"{stem}:scales"], fixed[f"{stem}:codes"]
        codes = blocks.unpack(packed, bits, 16)
        zeros = blocks.unpack(fixed[f"{stem}:zeros"], bits, codes.shape[1])
        real = (codes - zeros[..., None].astype(np.float64)) * scales[..., None]
        return real.reshape(len(codes), -1)[:, :columns].astype(np.float32)
    axis = 0 if stem.endswith(":columns") else 1
    codes, *grid = (fixed[f"{stem}:{name}"].astype(np.float64) for name in ("blocks", "blocks:scale", "blocks:zero"))
    scales, zeros = (np.take(np.repeat(item, 16, axis=axis), range(columns), axis=axis) for item in grid)
    real = (codes - zeros) * scales
    return (real.T if axis == 0 else real).astype(np.float32)


def replace(proto, name, values, node=None):
    """Give an initializer other values; for one node only, under another name, where that is named."""
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), f"{name}:other"))
    for item in proto.graph.node:
        for place, value in enumerate(item.input):
            if (value == name and item.name != "words") if node is None else (item.name == node and place == 0):
                item.input[place] = f"{name}:other"
    if node is None and name == "table":
        next(item for item in proto.graph.node if item.name == "words").input[0] = "table:other"


@pytest.mark.parametrize("form", ["nbits", "qdq"])
def test_all_optimization_levels_give_the_same_but_for_bytes_of_inputs(form):
    _, outcome = rewritten(mixture(64), form=form)
    plain = run(outcome.model, IDS, "disabled")
    for level in ("basic", "extended", "all"):
        for name, value in run(outcome.model, IDS, level).items():
            np.testing.assert_allclose(value, plain[name], atol=0.02 * np.abs(plain[name]).max())


def test_a_tied_table_is_stored_once_and_shared_weights_are_rounded_once():
    _, outcome = rewritten(mixture(), rounding="gptq", group=16)
    names = [item.name for item in outcome.model.graph.initializer]
    assert names.count("table:rows:codes") == names.count("w:columns:codes") == 1
    assert not {"table", "w", "v"} & set(names)
    assert sum(node.op_type == "MatMulNBits" for node in outcome.model.graph.node) == 4
    assert outcome.notes[0] == "MatMulNBits belongs to onnxruntime: other runtimes read `form: qdq`"
    assert not any("MatMulNBits" in note for note in rewritten(mixture(), form="qdq")[1].notes)


def test_convolutions_are_stored_in_bytes_and_unpacked_while_loading():
    _, outcome = rewritten(mixture())
    tensors = {item.name: item for item in outcome.model.graph.initializer}
    assert tensors["kernel:quantized"].data_type == tensors["wide:quantized"].data_type == TensorProto.INT8
    assert any("2 convolutions are only stored in 8 bits" in note for note in outcome.notes)
    session = runtime.session(outcome.model.SerializeToString())
    assert session is not None
    got, expected = run(outcome.model, IDS), run(mixture(), IDS)
    assert got["u"].shape == expected["u"].shape


def test_what_is_too_wide_for_gptq_is_named(monkeypatch):
    monkeypatch.setattr(weight_only, "WIDEST", 39)
    _, outcome = rewritten(mixture(), rounding="gptq", group=16)
    assert "rounded by hqq instead: table:rows, w:columns, v:columns" in outcome.warnings[0]


def test_stacked_weights_are_left_alone_with_the_reason():
    proto = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="stack"), helper.make_node("MatMul", ["h", "v"], ["y"], name="flat")],
        {"x": (["n", 3, 64], FLOAT)},
        {"y": ["n", 3, 64]},
        {"w": weights(1, 64, 64), "v": weights(64, 64, seed=1)},
    )  # fmt: skip
    found = {layer.name: layer.reason for layer in layers.choose(prepare(proto)[0], "weight_only", None, ())}
    assert "its weights have 3 dimensions" in found["stack"]
    assert not found["flat"]


def test_the_facts_of_both_forms_are_true():
    proto = mixture(64)
    float_facts = graph.facts(proto)
    for form, precision in (("nbits", "int8,uint4"), ("qdq", "uint4")):  # the second holds a tied table twice
        facts = graph.facts(rewritten(proto, form=form)[1].model)
        rounded = 70 * 64 + 64 * 64 + 64 * 9
        assert facts.precision == precision
        assert facts.tensor_bytes.get("uint4", 0) + facts.tensor_bytes.get("uint8", 0) >= rounded / 2
        channels = 8 + 6  # scales of the stored convolutions
        assert facts.parameters == float_facts.parameters + channels + (70 * 64 if form == "qdq" else 0)
        assert [layer.macs for layer in facts.layers] == [layer.macs for layer in float_facts.layers]
        assert {layer.dtype for layer in facts.layers if layer.operator in ("MatMulNBits", "Gemm", "MatMul")} == {
            "uint4"
        }
        assert graph.is_quantized(rewritten(proto, form=form)[1].model)


# The stage


def quantized(root, artifact, **wanted):
    data = Rows(rows.sample(prediction.signature(artifact)[0], 32, 7), 16)
    return run_stage(root, quantize_stage, {"method": "weight_only", **wanted}, model=artifact, data={"val": data})


@pytest.mark.parametrize(
    ("wanted", "shrink", "sqnr"),
    [
        ({"data": "val"}, 0.3, 12),
        ({"data": "val", "form": "qdq"}, 0.3, 12),
        ({"data": "val", "bits": 8}, 0.42, 30),
        ({"rounding": "hqq", "group": 64}, 0.3, 8),
    ],
)
def test_an_encoder_shrinks_and_says_how_close_it_stays(tmp_path, exported, wanted, shrink, sqnr):
    made = quantized(tmp_path, exported["encoder"], **wanted)
    assert made.metrics["quantized_layers"] == made.metrics["quantizable_layers"] == 15
    assert made.metrics["quantize_shrink"] < shrink
    assert made.metrics["quantize_sqnr_db"] > sqnr
    folder = made.file("model.onnx").parent
    served = Engine(folder / "model.onnx", read_signature(folder / "signature.json"), threads=1)
    served.warm_up()
    feed = rows.sample(prediction.signature(made)[0], 2, 3)
    np.testing.assert_array_equal(served.run(feed)["logits"], prediction.predictor(made, threads=1)(feed)["logits"])


def test_the_same_rows_give_the_same_bytes(tmp_path, exported):
    one, two = (quantized(tmp_path / name, exported["encoder"], data="val") for name in "ab")
    assert one.id == two.id


def test_gptq_is_closer_than_rounding_to_nearest(tmp_path, exported):
    found = {
        name: quantized(tmp_path / name, exported["encoder"], data="val", rounding=name).metrics["quantize_sqnr_db"]
        for name in ("nearest", "gptq")
    }
    assert found["gptq"] > found["nearest"] + 1


def test_settings_that_do_not_fit_are_refused():
    for wanted, told in (
        ({"method": "static", "data": "val", "bits": 4}, "`bits` fits weight_only"),
        ({"method": "weight_only", "rounding": "gptq"}, "gptq looks at the layers' inputs on data"),
        ({"method": "weight_only", "bits": 2}, "bits"),
        ({"method": "weight_only", "group": 48}, "group"),
    ):
        with pytest.raises((ValueError, RecipeError), match=told):
            QuantizeConfig.model_validate(wanted)


def test_an_old_graph_is_raised_to_the_opset_that_blocks_need():
    _, outcome = rewritten(mixture(opset=13), form="qdq")
    assert onnxfile.opset(outcome.model) == 21
    assert any("converted to opset 21" in note for note in outcome.notes)
    made = engine.quantize(mixture(opset=13), Settings(method="weight_only", form="qdq"), Evidence(feeds))
    assert made.shrunk < 0.6
    assert dataclasses.is_dataclass(made.outcome)
