import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import nets
from modelpack.errors import MissingError, StageError
from modelpack.numerics import onnx_import, prediction, rows, runtime
from modelpack.numerics.checks import opening
from modelpack.tensors import TensorSpec
from onnx_support import graph_of, onnx_artifact, torch_artifact, weights


def spec(*shape, dtype="float32", limits=None):
    return TensorSpec(shape=shape, dtype=dtype, range=limits)


IMAGE = {"image": spec("batch", 3, 4, 4)}
PAIR = {
    "ids": spec("batch", "seq", dtype="int64", limits=(0, 9)),
    "mask": spec("batch", "seq", dtype="int64", limits=(0, 1)),
}


@pytest.fixture
def linear():
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (["batch", 4], TensorProto.FLOAT)},
        {"y": ["batch", 3]},
        {"w": weights(4, 3)},
    )


def test_telemetry_is_off_before_the_engine_loads():
    code = "import modelpack.numerics.runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout.strip() == "1"


def test_a_device_that_is_not_there_is_missing_never_a_silent_cpu_run(linear):
    if "CUDAExecutionProvider" in runtime.ort.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(MissingError, match="CUDA"):
        runtime.session(linear.SerializeToString(), "cuda:0")
    with pytest.raises(MissingError, match="tpu"):
        runtime.providers("tpu")


def test_a_session_that_fell_back_to_another_provider_is_refused(linear, monkeypatch):
    monkeypatch.setattr(runtime, "providers", lambda _device: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(MissingError, match="got CPUExecutionProvider"):
        runtime.session(linear.SerializeToString(), "cuda:0")


def test_a_broken_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(StageError, match=r"broken\.onnx: onnxruntime cannot load"):
        runtime.session(path)


def test_the_onnx_predictor_computes_the_graph(tmp_path, linear):
    predict = prediction.predictor(onnx_artifact(tmp_path, linear))
    x = weights(5, 4, seed=1)
    assert predict.outputs == ("y",)
    np.testing.assert_allclose(predict({"x": x, "label": x})["y"], x @ weights(4, 3), rtol=1e-5)


def test_the_torch_predictor_names_outputs_as_the_signature_does(tmp_path):
    predict = prediction.predictor(torch_artifact(tmp_path, "nets.py:encoder", nets.TOKENS))
    given_rows = rows.sample(predict.inputs, 3, 0)
    found = predict(given_rows)
    assert tuple(found) == predict.outputs == ("logits", "embedding")
    assert found["logits"].shape == (3, 5)
    alone = predict({name: value[:1] for name, value in given_rows.items()})
    np.testing.assert_allclose(alone["logits"], found["logits"][:1], atol=1e-5)


def test_feed_picks_inputs_and_widens_integers_and_floats():
    batch = {
        "ids": np.ones((2, 5), np.int32),
        "mask": np.ones((2, 5), np.uint8),
        "label": np.zeros(2),
    }
    found = rows.feed(batch, PAIR)
    assert set(found) == {"ids", "mask"}
    assert all(value.dtype == np.int64 for value in found.values())
    half = rows.feed({"image": np.zeros((1, 3, 4, 4), np.float16)}, IMAGE)
    assert half["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": np.zeros((1, 3, 4, 4), np.float32)}, "no column 'image'.*\n.*did you mean 'images'"),
        ({"image": np.zeros((1, 3, 4, 4), np.float64)}, "'image' is declared float32, the data hold float64"),
        ({"image": np.zeros((1, 3, 4, 4), np.uint8)}, "'image' is declared float32, the data hold uint8"),
        ({"image": np.zeros((1, 4, 4, 3), np.float32)}, "'image' has size 4 in dimension 1"),
        ({"image": np.zeros((3, 4, 4), np.float32)}, "'image' has 3 dimensions"),
    ],
)
def test_feed_names_what_does_not_fit(batch, message):
    with pytest.raises(StageError, match=message):
        rows.feed(batch, IMAGE)


def test_feed_wants_equal_sizes_for_equal_names():
    with pytest.raises(StageError, match="dimension 'seq' is 4 in input 'mask' and 5 in 'ids'"):
        rows.feed({"ids": np.ones((2, 5), np.int64), "mask": np.ones((2, 4), np.int64)}, PAIR)


@given(
    low=st.integers(-100, 100),
    width=st.integers(0, 50),
    batch=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "int64", "uint8", "int8", "float64"]),
)
def test_samples_lie_within_the_declared_range(low, width, batch, dtype):
    if dtype == "uint8":
        low = abs(low)
    inputs = {"x": spec("n", 7, dtype=dtype, limits=(low, low + width))}
    values = rows.sample(inputs, batch, 3)["x"]
    assert values.shape == (batch, 7)
    assert values.dtype == dtype
    assert values.min() >= low
    assert values.max() <= low + width
    assert np.array_equal(values, rows.sample(inputs, batch, 3)["x"])


def test_samples_share_named_dimensions():
    found = rows.sample(PAIR, 2, 0, {"seq": 6})
    assert found["ids"].shape == found["mask"].shape == (2, 6)


def test_rows_are_limited_and_cut_for_a_model_of_fixed_batch():
    columns = [{"x": np.arange(12.0, dtype=np.float32).reshape(6, 2)}, {"x": np.ones((6, 2), np.float32)}]
    free = list(rows.feeds(columns, {"x": spec("n", 2)}, 8))
    assert [len(item["x"]) for item in free] == [6, 2]
    fixed = list(rows.feeds(columns, {"x": spec(4, 2)}, 100))
    assert [len(item["x"]) for item in fixed] == [4, 4]
    single = list(rows.feeds(columns, {"x": spec(1, 2)}, 3))
    assert np.array_equal(np.concatenate([item["x"] for item in single]), columns[0]["x"][:3])
    least = list(rows.feeds([{"x": np.ones((3, 2), np.float32)}, *columns], {"x": spec(4, 2)}, 2))
    assert [item["x"].tolist() for item in least] == [columns[0]["x"][:4].tolist()]


@pytest.mark.parametrize(
    ("batches", "rows_at_once", "hint"),
    [
        ([], "n", "the model reads x; the data are empty"),
        ([{"x": np.ones((0, 2), np.float32)}], "n", "the model reads x; the data are empty"),
        ([{"y": np.ones((5, 2)), "label": np.ones(5)}], "n", "the model reads x; the data have y, label: name them"),
        ([{"x": np.ones((5, 2), np.float32)}] * 3, 8, "8 rows at a time, and no batch of the data has more than 5"),
    ],
)
def test_why_no_row_can_be_read_is_told(batches, rows_at_once, hint):
    inputs = {"x": spec(rows_at_once, 2)}
    for reading in (rows.feeds(batches, inputs, 16), rows.labelled(batches, inputs, 16, "label")):
        with pytest.raises(StageError, match="no rows that the model could read") as caught:
            list(reading)
        assert hint in caught.value.then
    with pytest.raises(StageError, match="no rows"):
        rows.peeked([], inputs)


def test_a_crash_of_the_engine_is_seen_from_outside(tmp_path, linear, monkeypatch):
    assert runtime.survives(linear.SerializeToString())
    path = tmp_path / "model.onnx"
    path.write_bytes(linear.SerializeToString())
    assert runtime.survives(path)
    assert runtime.survives(b"an error is no crash")
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(runtime.sys, "executable", str(killer))
    assert not runtime.survives(path)


def test_a_model_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "PATIENCE", 0.5)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    endless = graph_of(
        [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        {"x": ([1], TensorProto.FLOAT)},
        {"y": [1]},
        {"true": np.array(True)},
    )
    path = tmp_path / "endless.onnx"
    path.write_bytes(endless.SerializeToString())
    model, inputs = opening.read(path)
    with pytest.raises(StageError, match="gave no answer within"):
        opening.made_up(model, inputs, 0)
    with pytest.raises(StageError, match="gave no answer within"):
        opening.tried(model, {"x": np.zeros(1, np.float32)})
    with pytest.raises(StageError, match="does not run on inputs as declared"):
        onnx_import.write(tmp_path, path, None, None, 0)
