"""Weights that are adjusted before ranges are measured: by the stages, with what must agree between them."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelpack.errors import StageError
from modelpack.numerics import differences, onnxfile, runtime
from modelpack.numerics.quantization.calibration import channels, record
from modelpack.stages.calibrate import calibrate as calibrate_stage
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.tensors import TensorSpec
from onnx_support import graph_of, onnx_artifact, weights
from support import Rows, run_stage

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WIDTH = 32


def encoder(outliers=200.0, opset=17):
    """A normalization with two channels far larger than the others, read by two products, and a head."""
    scale = np.ones(WIDTH, np.float32)
    scale[[3, 20]] = outliers
    thin = weights(WIDTH, WIDTH, seed=1) / 8
    thin[[3, 20]] /= outliers
    return graph_of(
        [
            helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], name="norm", axis=-1),
            helper.make_node("MatMul", ["n", "w"], ["a"], name="one"),
            helper.make_node("MatMul", ["n", "v"], ["b"], name="two"),
            helper.make_node("Mul", ["a", "b"], ["c"], name="mixed"),
            helper.make_node("MatMul", ["c", "u"], ["y"], name="head"),
        ],
        {"x": (["batch", "length", WIDTH], FLOAT), "mask": (["batch", "length"], INT64)},
        {"y": ["batch", "length", 16]},
        {
            "scale": scale,
            "shift": weights(WIDTH, seed=4),
            "w": thin,
            "v": thin[:, ::-1].copy(),
            "u": weights(WIDTH, 16),
        },
        opset=opset,
    )


def sentences(count=48, seed=0):
    generator = np.random.default_rng(seed)
    mask = np.arange(7) < generator.integers(2, 8, count)[:, None]
    x = generator.standard_normal((count, 7, WIDTH)).astype(np.float32)
    return {"x": np.where(mask[:, :, None], x, 50 * x[:, :, ::-1]), "mask": mask.astype(np.int64)}


def pair():
    """Two convolutions whose channels between them differ a thousandfold, and a head."""
    spread = np.float32(10) ** np.linspace(-1.5, 1.5, 32, dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["d"], name="two", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "u"], ["y"], name="head"),
    ]
    constants = {
        "w": weights(32, 4, 3, 3) * spread[:, None, None, None],
        "b": weights(32, seed=2) * spread,
        "v": weights(48, 32, 3, 3, seed=1) / spread[:, None, None],
        "c": weights(48, seed=3),
        "u": weights(48, 10, seed=4),
    }
    return graph_of(nodes, {"x": (["batch", 4, 8, 8], FLOAT)}, {"y": ["batch", 10]}, constants)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("adjusted")


@pytest.fixture(scope="module")
def language(root):
    return onnx_artifact(root / "language", encoder())


@pytest.fixture(scope="module")
def vision(root):
    return onnx_artifact(root / "vision", pair())


def rows_of(model):
    return (
        sentences()
        if "mask" in {item.name for item in onnxfile.read(model.file("model.onnx")).graph.input}
        else {"x": weights(48, 4, 8, 8, seed=9)}
    )


def calibrated(root, model, **wanted):
    return run_stage(
        root, calibrate_stage, {"data": "val", **wanted}, model=model, data={"val": Rows(rows_of(model), 8)}
    )


def quantized(root, model, calibration=None, **wanted):
    steps = {} if calibration is None else {"before": calibration}
    named = {} if calibration is None else {"calibration": "before"}
    settings = {"data": "val", "verify": False, **named, **wanted}
    return run_stage(root, quantize_stage, settings, model=model, steps=steps, data={"val": Rows(rows_of(model), 8)})


def test_smoothing_saves_what_outliers_cost(tmp_path, language):
    plain = quantized(tmp_path / "plain", language)
    made = quantized(tmp_path / "smooth", language, smooth=0.5)
    assert made.metrics["quantize_sqnr_db"] > plain.metrics["quantize_sqnr_db"] + 3
    table = {item["tensor"]: item for item in made.manifest.record["results"]["smoothing"]}
    assert table["n"] == {"tensor": "n", "layers": ["one", "two"], "smoothed": True, "other_readers": 0, "reason": ""}
    assert table["c"]["reason"] == "nothing constant is in what makes it"
    assert "smoothing" not in plain.manifest.record["results"]


def test_equalizing_saves_what_uneven_channels_cost(tmp_path, vision):
    plain = quantized(tmp_path / "plain", vision)
    made = quantized(tmp_path / "even", vision, equalize=True)
    assert made.metrics["quantize_sqnr_db"] > plain.metrics["quantize_sqnr_db"] + 3
    (found,) = made.manifest.record["results"]["equalization"]
    assert (found["first"], found["second"], found["channels"], found["reason"]) == ("one", "two", 32, "")
    assert found["largest_factor"] > 10


def test_a_model_with_nothing_to_adjust_says_so(tmp_path, language, vision):
    told = quantized(tmp_path / "one", language, equalize=True).manifest.record["warnings"]
    assert any("`equalize` found no layers whose channels could be evened out: there are none" in text for text in told)
    told = quantized(tmp_path / "two", vision, smooth=0.5).manifest.record["warnings"]
    assert any("`smooth` found no activations whose outliers could be moved: Flatten makes it" in text for text in told)


def test_one_calibration_serves_what_was_adjusted_alike(tmp_path, language):
    before = calibrated(tmp_path / "calibrated", language, smooth=0.5, equalize=True)
    kept = record.read(before.file(record.FACTS), before.file(record.ARRAYS))
    assert (kept.smooth, kept.equalize, sorted(kept.factors)) == (0.5, True, ["n"])
    made = quantized(tmp_path / "made", language, before, smooth=0.5, equalize=True)
    alone = quantized(tmp_path / "alone", language, smooth=0.5, equalize=True)
    assert made.file("model.onnx").read_bytes() == alone.file("model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("was", "asked", "told"),
    [
        ({"smooth": 0.5}, {}, "made with `smooth: 0.5`, not with `smooth: none`"),
        ({}, {"smooth": 0.25}, "made with `smooth: none`, not with `smooth: 0.25`"),
        ({}, {"equalize": True}, "made with `equalize: false`, not with `equalize: true`"),
    ],
)
def test_ranges_of_other_weights_are_refused(tmp_path, language, was, asked, told):
    before = calibrated(tmp_path / "calibrated", language, **was)
    with pytest.raises(StageError, match=told):
        quantized(tmp_path / "made", language, before, **asked)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("masked", [True, False])
def test_magnitudes_of_channels_are_those_of_real_positions(opset, masked):
    model = encoder(opset=opset)
    inputs = {
        "x": TensorSpec.model_validate({"shape": ["batch", "length", WIDTH]}),
        "mask": TensorSpec.model_validate({"shape": ["batch", "length"], "dtype": "int64"}),
    }
    feeds = [sentences(5, seed) for seed in range(3)]
    found = channels.largest(model, ["n", "c"], feeds, inputs, mask="mask" if masked else None)
    session = runtime.session(onnxfile.encode(differences.tapped(model, ["n", "c"])))
    for name in ("n", "c"):
        expected = np.zeros(WIDTH)
        for feed in feeds:
            values = runtime.execute(session, feed)[name].astype(np.float64)
            real = feed["mask"].astype(bool) if masked else np.ones_like(feed["mask"], bool)
            expected = np.maximum(expected, np.abs(values[real]).max(axis=0))
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_magnitudes_need_rows_and_numbers():
    model = encoder()
    inputs = {
        "x": TensorSpec.model_validate({"shape": ["batch", "length", WIDTH]}),
        "mask": TensorSpec.model_validate({"shape": ["batch", "length"], "dtype": "int64"}),
    }
    assert channels.largest(model, [], [], inputs) == {}
    with pytest.raises(StageError, match="no rows"):
        channels.largest(model, ["n"], [], inputs)
    feed = sentences(2)
    feed["x"][0, 0, 0] = np.nan
    with pytest.raises(StageError, match="NaN"):
        channels.largest(model, ["n"], [feed], inputs)
