import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization import engine, layers, qdq
from modelpack.numerics.quantization.correction import reconstruction, samples
from modelpack.numerics.quantization.correction.padding import Padding, padding
from modelpack.numerics.quantization.settings import Evidence, Settings
from onnx_support import calibrated, graph_of, weights

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LENGTHS = (7, 2, 5, 3, 4, 6, 1, 5) * 8


@pytest.fixture(scope="module")
def sentences():
    """Products position by position, an output of each position, and one of their masked mean."""
    return graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
            helper.make_node("Add", ["a", "w.bias"], ["b"], name="one.bias"),
            helper.make_node("Relu", ["b"], ["c"], name="relu"),
            helper.make_node("MatMul", ["c", "v"], ["d"], name="two"),
            helper.make_node("Add", ["d", "v.bias"], ["tokens"], name="two.bias"),
            helper.make_node("Cast", ["mask"], ["real"], name="cast", to=FLOAT),
            helper.make_node("Unsqueeze", ["real", "last"], ["column"], name="column"),
            helper.make_node("Mul", ["tokens", "column"], ["kept"], name="keep"),
            helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Gemm", ["sum", "u", "u.bias"], ["y"], name="last", transB=1),
        ],
        {"x": (["batch", "sequence", 6], FLOAT), "mask": (["batch", "sequence"], INT64)},
        {"y": ["batch", 5], "tokens": ["batch", "sequence", 8]},
        {
            "w": weights(6, 16), "v": weights(16, 8, seed=1), "u": weights(5, 8, seed=2),
            "w.bias": weights(16, seed=3), "v.bias": weights(8, seed=4), "u.bias": weights(5, seed=5),
            "last": np.array([-1]), "middle": np.array([1]),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """The same sentences one by one, and as one batch whose padded positions hold what occurs nowhere else."""
    alone = [
        {"x": weights(1, length, 6, seed=number), "mask": np.ones((1, length), np.int64)}
        for number, length in enumerate(LENGTHS)
    ]
    whole = {"x": 2 + weights(len(LENGTHS), 7, 6, seed=99), "mask": np.zeros((len(LENGTHS), 7), np.int64)}
    for row, (feed, length) in enumerate(zip(alone, LENGTHS, strict=True)):
        whole["x"][row, :length], whole["mask"][row, :length] = feed["x"][0], 1
    return alone, [whole]


@pytest.fixture(scope="module")
def plain(sentences, rows):
    chosen = [layer.name for layer in layers.choose(sentences, "static", None, ()) if layer.quantized]
    marked = qdq.marks(sentences, chosen)
    extents = calibrated(sentences, rows[0]).extents(marked.measured, "minmax")
    return qdq.quantize(sentences, chosen, marked, extents), chosen


def constants(model):
    return {item.name: onnxfile.array(item) for item in model.graph.initializer}


@pytest.mark.parametrize("correction", ["bias", "sequential", "rounding"])
def test_padded_rows_give_the_constants_of_the_same_rows_unpadded(sentences, rows, plain, correction):
    alone, padded = rows
    wanted, made, careless = (
        reconstruction.correct(sentences, *plain, feeds, correction, mask=mask)
        for feeds, mask in ((alone, "mask"), (padded, "mask"), (padded, ""))
    )
    assert wanted.kept
    assert made.kept
    assert [gain.layer for gain in made.gains] == ["one", "two", "last"]
    assert made.before == pytest.approx(wanted.before, rel=1e-4)
    assert made.after == pytest.approx(wanted.after, rel=1e-4)
    assert careless.before != pytest.approx(wanted.before, rel=1e-2)
    expected = constants(wanted.model)
    for name, value in constants(made.model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    other = constants(careless.model)
    assert any(not np.allclose(other[name], value, rtol=1e-3) for name, value in expected.items())


def test_the_static_method_looks_past_padded_positions(sentences, rows):
    _, padded = rows
    seen = calibrated(sentences, padded)
    assert seen.mask == "mask"
    asked = Settings(correction="sequential")
    made = engine.quantize(sentences, asked, Evidence(read=lambda _label, _limit: padded, calibration=seen))
    other = [{**padded[0], "x": np.where(padded[0]["mask"][:, :, None] == 1, padded[0]["x"], -3).astype(np.float32)}]
    same = engine.quantize(sentences, asked, Evidence(read=lambda _label, _limit: other, calibration=seen))
    assert onnxfile.encode(made.outcome.model) == onnxfile.encode(same.outcome.model)


def test_tensors_that_a_mask_covers_are_found_apart_or_as_one(sentences, rows):
    _, padded = rows
    model = onnxfile.copied(sentences)
    model.graph.node.append(helper.make_node("Reshape", ["tokens", "flat"], ["positions"], name="flat"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 8]), "flat"))
    found = padding(model, ["b", "positions", "y"], "mask", padded)
    assert found.axes == {"b": 2, "positions": 1}
    real = padded[0]["mask"] == 1
    assert np.array_equal(found.real("b", 0, (64, 7, 16)), np.broadcast_to(real[:, :, None], (64, 7, 16)))
    assert np.array_equal(found.real("positions", 0, (64 * 7,)), real.reshape(-1))
    assert found.real("y", 0, (64, 5)).all()
    assert Padding().real("b", 0, (3, 2)).shape == (3, 2)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 8))), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_only_real_positions_are_drawn_each_once(real, most, seed):
    generator = np.random.default_rng(seed)
    spots = samples.positions((*real.shape, 3), channels_last=True, most=most, generator=generator, real=real)
    drawn = list(zip(*(spot.tolist() for spot in spots), strict=True))
    assert all(real[spot] for spot in drawn)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(most, int(real.sum()))
