import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from modelpack.errors import StageError
from modelpack.numerics import differences, grid, onnxfile, prediction, rows, runtime
from modelpack.numerics.quantization import layers, qdq
from modelpack.numerics.quantization.correction import fast_bias, reconstruction, rounding, samples, subject
from modelpack.numerics.quantization.correction.padding import Padding
from modelpack.numerics.quantization.correction.subject import Bias
from modelpack.numerics.quantization.correction.walk import Walk
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig
from onnx_support import calibrated, graph_of, onnx_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT


def problem(seed, groups=2, rows_=3, columns=5, positions=40):
    """Correlated inputs, weights, and the scales that static quantization would give them."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((groups, columns, columns))
    inputs = generator.standard_normal((groups, positions, columns)) @ mixing + 0.5
    real = generator.standard_normal((groups, rows_, columns))
    scales = np.abs(real).max(axis=2) / generator.choice([3, 7, 127])
    return inputs, real, scales, np.swapaxes(inputs, 1, 2) @ inputs


# Rounding


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 9, 40, 150]))
@settings(max_examples=40, deadline=None)
def test_no_row_is_further_off_than_rounded_to_nearest(seed, groups, rows_, columns):
    _, real, scales, moment = problem(seed, groups, rows_, columns, 2 * columns)
    firm = rounding.damped(moment, 0.01)
    steps, plain = rounding.rounded(real, scales, firm), rounding.nearest(real, scales)
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() <= 127
    off, plain_off = (rounding.error(item, real, scales, firm) for item in (steps, plain))
    assert (off <= plain_off * (1 + 1e-9) + 1e-12).all()


def test_rounding_comes_near_the_best_of_all_neighbours():
    found, plain, least = [], [], []
    for seed in range(40):
        _, real, scales, moment = problem(seed, 1, 1, 4)
        firm = rounding.damped(moment, 0.01)
        down = np.floor(real / scales[:, :, None])

        def off(steps, real=real, scales=scales, firm=firm):
            return rounding.error(np.clip(steps, -127, 127), real, scales, firm)[0, 0]

        found.append(off(rounding.rounded(real, scales, firm)))
        plain.append(off(rounding.nearest(real, scales)))
        least.append(min(off(down + np.array(step)) for step in itertools.product([-1, 0, 1, 2], repeat=4)))
    assert np.mean(np.array(plain) / least) > 1.3
    assert np.mean(np.array(found) / least) < 1.2


def test_the_error_is_that_of_the_outputs():
    inputs, real, scales, moment = problem(3)
    steps = rounding.nearest(real, scales)
    direct = np.square(inputs @ np.swapaxes(steps * scales[:, :, None] - real, 1, 2)).sum(axis=1)
    np.testing.assert_allclose(rounding.error(steps, real, scales, moment), direct, rtol=1e-9)


def test_correlated_inputs_gain_much():
    _, real, scales, moment = problem(5, 1, 16, 64, 400)
    firm = rounding.damped(moment, 0.001)
    off, plain = (
        rounding.error(made, real, scales, firm).sum()
        for made in (rounding.rounded(real, scales, firm), rounding.nearest(real, scales))
    )
    assert off < 0.5 * plain


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_weights_on_the_grid_stay(seed):
    generator = np.random.default_rng(seed)
    _, _, scales, moment = problem(seed)
    steps = generator.integers(-127, 128, (2, 3, 5)).astype(np.float64)
    firm = rounding.damped(moment, 0.01)
    assert np.array_equal(rounding.rounded(steps * scales[:, :, None], scales, firm), steps)


def test_inputs_that_never_occur_do_not_break_the_rounding():
    _, real, scales, moment = problem(1)
    moment[:, 2] = moment[:, :, 2] = 0
    assert np.isfinite(rounding.rounded(real, scales, rounding.damped(moment, 0.01))).all()
    nothing = rounding.damped(np.zeros_like(moment), 0.01)
    assert np.array_equal(rounding.rounded(real, scales, nothing), rounding.nearest(real, scales))


def test_fitted_weights_bring_the_wanted_outputs_out_of_other_inputs():
    inputs, real, _, _ = problem(2, positions=300)
    generator = np.random.default_rng(0)
    seen = inputs + 0.3 * generator.standard_normal(inputs.shape)
    wanted = inputs @ np.swapaxes(real, 1, 2)
    moment, cross = np.swapaxes(seen, 1, 2) @ seen, np.swapaxes(wanted, 1, 2) @ seen
    found = rounding.fitted(real, moment, cross, 1e-12)
    for group in range(2):
        exact = np.linalg.lstsq(seen[group], wanted[group], rcond=None)[0].T
        np.testing.assert_allclose(found[group], exact, atol=1e-7)
    np.testing.assert_allclose(rounding.fitted(real, moment, cross, 1e9), real, atol=1e-6)


# Bias


def test_a_bias_is_what_its_integers_can_hold():
    tensor = numpy_helper.from_array(np.array([10, -5, grid.BIAS_LIMIT], np.int32), "bias")
    bias = Bias(tensor, np.array([0.5, 0.1, 1.0]), np.zeros(3))
    np.testing.assert_allclose(bias.real(), [5, -0.5, grid.BIAS_LIMIT])
    settled = bias.settled(np.array([6.1, -0.81, grid.BIAS_LIMIT + 50.0]))
    np.testing.assert_allclose(settled, [6, -0.8, grid.BIAS_LIMIT])
    bias.write(settled)
    assert onnxfile.array(tensor).tolist() == [12, -8, grid.BIAS_LIMIT]


def test_a_float_bias_after_a_product_counts_from_what_the_float_graph_adds():
    tensor = numpy_helper.from_array(np.array([1.0, -2.0], np.float32), "bias")
    bias = Bias(tensor, None, np.array([1.0, -2.0]))
    assert bias.real().tolist() == [0, 0]
    bias.write(bias.settled(np.array([0.25, 0.5])))
    assert onnxfile.array(tensor).tolist() == [1.25, -1.5]


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_bytes_of_the_fast_correction_are_those_of_the_graph(seed, zero):
    values = np.random.default_rng(seed).normal(0, 3, (7, 5)).astype(np.float32)
    scale = np.float32(0.037)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["b"]), helper.make_node("Cast", ["b"], ["y"], to=1)]
    constants = {"s": np.array(scale), "z": np.array(zero, np.uint8)}
    graph = graph_of(nodes, {"x": ([7, 5], FLOAT)}, {"y": [7, 5]}, constants)
    expected = runtime.execute(runtime.session(onnxfile.encode(graph)), {"x": values})["y"]
    np.testing.assert_array_equal(fast_bias.on_grid(values, float(scale), zero), expected)


# Samples


@pytest.mark.parametrize(
    ("axes", "group", "attributes"),
    [
        (2, 1, {}),
        (2, 4, {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        (2, 8, {"strides": [2, 2], "dilations": [2, 1], "pads": [2, 2, 2, 2]}),
        (2, 2, {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
        (2, 1, {"strides": [1, 2], "auto_pad": "SAME_LOWER"}),
        (2, 1, {"auto_pad": "VALID"}),
        (1, 2, {"strides": [2], "pads": [0, 2], "dilations": [2]}),
    ],
)
def test_gathered_inputs_give_the_convolutions_outputs(axes, group, attributes):
    generator = np.random.default_rng(4)
    kernel = generator.integers(-9, 9, (8, 8 // group, *[3] * axes)).astype(np.float32)
    values = generator.integers(0, 255, (3, 8, *[11] * axes)).astype(np.uint8)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group, **attributes)
    shape = samples.shape(node, kernel)
    made = graph_of([node], {"x": ([3, 8, *[11] * axes], FLOAT)}, {"y": [None] * (axes + 2)}, {"w": kernel})
    whole = runtime.execute(runtime.session(onnxfile.encode(made)), {"x": values.astype(np.float32) - 7})["y"]
    spots = samples.positions(whole.shape, channels_last=False, most=20, generator=generator)
    assert len(spots[0]) == len(set(zip(*spots, strict=True))) == min(20, whole[:, 0].size)
    inputs = shape.gather(values, spots, 7).astype(np.float64) - 7
    got = inputs @ np.swapaxes(shape.split(kernel), 1, 2)
    np.testing.assert_array_equal(got, samples.at(whole, spots, shape))
    np.testing.assert_array_equal(shape.join(shape.split(kernel), kernel), kernel)


def test_moments_and_measured_errors_are_those_of_a_float64_reference():
    generator = np.random.default_rng(6)
    bytes_ = generator.integers(0, 256, (2, 5000, 4)).astype(np.uint8)
    bytes_[0, :3000] = 0  # the largest products that float32 must hold exactly
    wanted = generator.standard_normal((2, 5000, 3)).astype(np.float32)
    sums, held, zero = samples.Moments.empty(2, 3, 4, products=True), samples.Held(), 100
    for part in (slice(0, 70), slice(70, 5000)):
        sums.add(bytes_[:, part], wanted[:, part])
        held.inputs.append(bytes_[:, part])
        held.wanted.append(wanted[:, part])
    middle = bytes_.astype(np.int64) - samples.MIDDLE
    assert sums.count == 5000
    assert np.array_equal(sums.square, np.swapaxes(middle, 1, 2) @ middle)
    inputs = bytes_.astype(np.int64) - zero
    for got, exact in zip(sums.means(zero), (inputs.mean(axis=1), wanted.mean(axis=1, dtype=np.float64)), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9)
    square, cross = sums.about(zero)
    np.testing.assert_allclose(square, np.swapaxes(inputs, 1, 2) @ inputs, rtol=1e-9)
    np.testing.assert_allclose(cross, np.swapaxes(wanted.astype(np.float64), 1, 2) @ inputs, rtol=1e-4, atol=0.1)
    square, cross = sums.centred()
    apart = inputs - inputs.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(square, np.swapaxes(apart, 1, 2) @ apart, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(cross, np.swapaxes(wanted.astype(np.float64), 1, 2) @ apart, rtol=1e-4, atol=0.1)
    steps, scales, bias = generator.integers(-5, 5, (2, 3, 4)), np.full((2, 3), 0.01), np.ones((2, 3))
    got = inputs @ np.swapaxes(steps, 1, 2) * 0.01 + 1
    np.testing.assert_allclose(held.error(steps, scales, bias, zero), np.square(got - wanted).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(held.power(), np.square(wanted).mean(axis=1), rtol=1e-5)


# The walk and the sequence


def quantized(root, artifact, count=48, **wanted):
    drawn = Rows(rows.sample(prediction.signature(artifact)[0], count, 7), 16)
    return run_stage(root, quantize_stage, {"data": "val", **wanted}, model=artifact, data={"val": drawn})


@pytest.mark.parametrize("budget", [0, 20_000, 2**30])
def test_a_walk_sees_what_the_whole_graph_gives(exported, budget):
    artifact = exported["cnn"]
    model = onnxfile.read(artifact.file("model.onnx"))
    inputs, _ = prediction.signature(artifact)
    feeds = [rows.sample(inputs, size, size) for size in (5, 3)]
    walk = Walk(model, feeds, budget=budget)
    kept = []
    for place, node in enumerate(model.graph.node):
        name = node.output[0]
        if name not in walk.varying:
            continue
        tapped = runtime.session(onnxfile.encode(differences.tapped(model, [name])))
        for feed, got in zip(feeds, walk.reach(place + 1, [name]), strict=True):
            np.testing.assert_allclose(got[name], runtime.execute(tapped, feed)[name], atol=1e-4)
        kept.append(sum(value.nbytes for feed in walk.held for value in feed.values()))
    given = sum(value.nbytes for feed in feeds for value in feed.values())
    assert max(kept) <= max(budget * 2, given)
    assert (kept[-2] < given) == (budget > 0)


def test_a_walk_keeps_what_a_branch_reads():
    def branch(name, operator):
        node = helper.make_node(operator, ["b"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    model = graph_of(
        [
            helper.make_node("Relu", ["x"], ["b"], name="relu"),
            helper.make_node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
            helper.make_node("Cast", ["top"], ["choice"], name="choice", to=TensorProto.BOOL),
            helper.make_node("If", ["choice"], ["c"], then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg")),
            helper.make_node("Neg", ["c"], ["y"], name="last"),
        ],
        {"x": (["batch", 3], FLOAT)},
        {"y": ["batch", 3]},
        {},
    )
    feed = {"x": weights(4, 3)}
    walk = Walk(model, [feed])
    assert [list(got) for got in walk.reach(3, ["b"])] == [["b"]]
    assert sorted(walk.held[0]) == ["b", "choice"]
    (got,) = walk.reach(5, ["y"])
    np.testing.assert_allclose(got["y"], -np.exp(np.maximum(feed["x"], 0)), rtol=1e-6)


@pytest.fixture(scope="module")
def careless(tmp_path_factory):
    """A network as depthwise ones are: one large weight a channel leaves few steps for the others."""
    spread = weights(32, 1, 3, 3, seed=3)
    spread[:, :, 1, 1] *= 60
    nodes = [
        helper.make_node("Conv", ["x", "stem", "stem.bias"], ["a"], name="stem", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "wide", "wide.bias"], ["c"], name="depthwise", pads=[1] * 4, group=32),
        helper.make_node("Conv", ["c", "project", "project.bias"], ["d"], name="project"),
        helper.make_node("Relu", ["d"], ["e"], name="bend"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], name="pool"),
        helper.make_node("Flatten", ["f"], ["g"], name="flat"),
        helper.make_node("Gemm", ["g", "head", "head.bias"], ["y"], name="classes"),
    ]
    constants = {
        "stem": weights(32, 3, 3, 3),
        "wide": spread,
        "project": weights(48, 32, 1, 1, seed=4),
        "head": weights(48, 10, seed=5),
    }
    biases = {"stem": 32, "wide": 32, "project": 48, "head": 10}
    constants |= {f"{name}.bias": weights(size, seed=size) for name, size in biases.items()}
    graph = graph_of(nodes, {"x": (["batch", 3, 12, 12], FLOAT)}, {"y": ["batch", 10]}, constants)
    return onnx_artifact(tmp_path_factory.mktemp("careless"), graph)


def test_coarse_depthwise_weights_are_made_up_for_at_the_same_size(tmp_path, careless):
    plain = quantized(tmp_path, careless, count=64)
    made = quantized(tmp_path, careless, count=64, correction="rounding")
    table = {item["layer"]: item for item in made.manifest.record["results"]["correction"]}
    assert made.metrics["quantize_sqnr_db"] > plain.metrics["quantize_sqnr_db"] + 3
    assert list(table) == ["stem", "depthwise", "project", "classes"]
    assert made.metrics["quantize_corrected_layers"] == len(table)
    assert all(item["sqnr_db"] > item["sqnr_db_before"] for item in table.values())
    assert made.file("model.onnx").stat().st_size == plain.file("model.onnx").stat().st_size
    assert "quantize_corrected_layers" not in plain.metrics


@pytest.mark.parametrize("name", ["grouped", "encoder"])
def test_grouped_convolutions_and_products_come_closer(tmp_path, exported, name):
    plain = quantized(tmp_path, exported[name], count=128)
    made = quantized(tmp_path, exported[name], count=128, correction="rounding")
    assert made.metrics["quantize_corrected_layers"] > 0
    assert made.metrics["quantize_sqnr_db"] > plain.metrics["quantize_sqnr_db"]


def test_the_same_work_gives_the_same_bytes(tmp_path, careless):
    one = quantized(tmp_path / "one", careless, correction="rounding")
    two = quantized(tmp_path / "two", careless, correction="rounding")
    assert one.id == two.id


@pytest.mark.parametrize("correction", ["bias", "sequential", "adaround"])
def test_every_correction_brings_the_model_closer(tmp_path, careless, correction):
    plain = quantized(tmp_path, careless, count=64)
    made = quantized(tmp_path, careless, count=64, correction=correction)
    assert made.metrics["quantize_sqnr_db"] > plain.metrics["quantize_sqnr_db"] + (1 if correction == "adaround" else 0)
    assert made.metrics["quantize_corrected_layers"] == 4
    before, after = (
        {item.name: onnxfile.array(item) for item in onnxfile.read(done.file("model.onnx")).graph.initializer}
        for done in (plain, made)
    )
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert correction == "adaround" or all(name.endswith(":bias:quantized") for name in changed)


@pytest.fixture(scope="module")
def shared():
    """A chain of products, two of them by the same matrix, with a bias added to each."""
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("MatMul", ["b", "w"], ["c"], name="two"),
            helper.make_node("Add", ["c", "more"], ["d"], name="add"),
            helper.make_node("Gemm", ["d", "v", "bias"], ["y"], name="last", transB=1),
        ],
        {"x": (["batch", 8], FLOAT)},
        {"y": ["batch", 6]},
        {"w": weights(8, 8), "more": weights(8, seed=4), "v": weights(6, 8, seed=1), "bias": weights(6, seed=2)},
    )
    chosen = [layer.name for layer in layers.choose(model, "static", None, ())]
    feeds = [{"x": weights(16, 8, seed=seed)} for seed in range(4)]
    marked = qdq.marks(model, chosen)
    plain = qdq.quantize(model, chosen, marked, calibrated(model, feeds).extents(marked.measured, "minmax"))
    return model, plain, chosen, feeds


def test_shared_weights_stay_but_biases_follow_and_it_is_said(shared):
    model, plain, chosen, feeds = shared
    made = reconstruction.correct(model, plain, chosen, feeds, "rounding")
    gains = {gain.layer: gain for gain in made.gains}
    assert (
        gains["one"].reason == "its weights were left alone: other layers share its weights; it has no bias of its own"
    )
    assert gains["two"].reason == "its weights were left alone: other layers share its weights"
    assert gains["last"].reason == ""
    assert (gains["one"].changed, gains["two"].changed > 0, gains["last"].changed > 0) == (0, True, True)
    assert made.kept
    before, after = ({item.name: onnxfile.array(item) for item in one.graph.initializer} for one in (plain, made.model))
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert {"more"} < changed <= {"more", "v:rows:quantized", "last:bias:quantized"}
    assert made.after < made.before
    assert [made.before, made.after] == reconstruction.noise(model, [plain, made.model], feeds, Padding())


def test_the_given_graph_stays_as_it_is(shared):
    model, plain, chosen, feeds = shared
    kept = plain.SerializeToString()
    reconstruction.correct(model, plain, chosen, feeds, "sequential")
    assert plain.SerializeToString() == kept


def test_layers_that_are_too_wide_keep_their_weights(shared, monkeypatch):
    model, plain, chosen, feeds = shared
    monkeypatch.setattr(subject, "WIDEST", 7)
    made = reconstruction.correct(model, plain, chosen, feeds, "rounding")
    gain = made.gains[-1]
    assert gain.reason == "its weights were left alone: 8 inputs of one output are more than 7"
    assert gain.changed > 0


def test_weights_that_do_worse_than_the_bias_alone_are_not_taken(shared, monkeypatch):
    model, plain, chosen, feeds = shared
    shifted = onnxfile.copied(plain)
    bias = next(item for item in shifted.graph.initializer if item.name == "last:bias:quantized")
    bias.CopyFrom(numpy_helper.from_array(onnxfile.array(bias) + np.int32(10**6), bias.name))
    monkeypatch.setattr(rounding, "rounded", lambda weights, *_: np.zeros_like(weights))
    made = reconstruction.correct(model, shifted, chosen, feeds, "rounding")
    assert made.gains[-1].changed == 6
    before, after = ({item.name: onnxfile.array(item) for item in one.graph.initializer} for one in (plain, made.model))
    assert np.array_equal(after["v:rows:quantized"], before["v:rows:quantized"])


def test_rows_are_fitted_to_or_measured_on_by_their_number_in_all_batches(shared):
    model, plain, _, _ = shared
    layer = subject.Subject("last", subject.Graph(model, plain))
    seen = np.random.default_rng(3).integers(0, 256, (23, 8)).astype(np.uint8)
    goals = weights(23, 6)
    parts = zip(*(np.split(rows_, [5, 6, 14]) for rows_ in (seen, goals)), strict=True)
    reconstruction._look(layer, parts, Padding(), 100, np.random.default_rng(0), products=True)
    out = np.arange(23) % 4 == 3
    np.testing.assert_array_equal(np.concatenate(layer.held.inputs, axis=1)[0], seen[out])
    np.testing.assert_array_equal(np.concatenate(layer.held.wanted, axis=1)[0], goals[out])
    assert layer.fit is not None
    assert layer.fit.count == (~out).sum()
    np.testing.assert_array_equal(layer.fit.inputs[0], (seen[~out] - 128.0).sum(axis=0))


def test_the_model_is_measured_on_the_rows_kept_out_alone(shared):
    model, plain, _, _ = shared
    rows_ = weights(23, 8, seed=9)
    wanted, got = (
        runtime.execute(runtime.session(onnxfile.encode(one)), {"x": rows_})["y"].astype(np.float64)[3::4]
        for one in (model, plain)
    )
    expected = np.square(got - wanted).sum() / np.square(wanted).sum()
    feeds = [{"x": part} for part in np.split(rows_, [5, 6, 14])]
    assert reconstruction.noise(model, [plain], feeds, Padding()) == pytest.approx([expected], rel=1e-4)


def test_a_model_that_becomes_worse_is_left_as_it_was(tmp_path, careless, monkeypatch):
    plain = quantized(tmp_path, careless)
    monkeypatch.setattr(reconstruction, "noise", lambda *_: [1.0, 2.0])
    made = quantized(tmp_path, careless, correction="rounding")
    assert made.file("model.onnx").read_bytes() == plain.file("model.onnx").read_bytes()
    assert made.metrics["quantize_corrected_layers"] == 0
    assert any("it was left out" in text for text in made.manifest.record["warnings"])


def test_too_few_rows_are_refused(tmp_path, careless):
    with pytest.raises(StageError, match="`correction: rounding` needs 8 rows or more, the data gave 5"):
        quantized(tmp_path, careless, count=5, correction="rounding")


def test_only_static_can_be_corrected():
    with pytest.raises(ValidationError, match="`correction` fits static, not 'dynamic'"):
        QuantizeConfig.model_validate({"method": "dynamic", "correction": "rounding"})
