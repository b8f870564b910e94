"""Other projects' quantizers behind the stage `quantize`: what they make, what they are told, and what they refuse."""

import importlib.util
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from modelpack.errors import MissingError, StageError
from modelpack.events import Note, Progress
from modelpack.numerics import graph, onnxfile
from modelpack.numerics.quantization import backends, engine, layers
from modelpack.numerics.quantization.rewriting import prepare
from modelpack.numerics.quantization.settings import Evidence, Outcome, Settings
from modelpack.numerics.silence import Terminal, quiet
from modelpack.stage import Outside
from modelpack.stages.quantize import quantize as quantize_stage
from onnx_support import graph_of, onnx_artifact, weights
from support import Rows, run_stage


def net():
    """Three convolutions, the middle one depthwise with channels of very different sizes, and a classifier."""
    gains = np.logspace(-1.5, 1.5, 16).astype(np.float32)[:, None, None, None]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ar"], "first_relu"),
        helper.make_node("Conv", ["ar", "w2", "b1"], ["b"], "depthwise", group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["br"], "depthwise_relu"),
        helper.make_node("Conv", ["br", "w3"], ["c"], "last"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["scores"], "head", transB=1),
    ]
    tensors = {
        "w1": weights(16, 3, 3, 3) / 5,
        "b1": weights(16, seed=1),
        "w2": weights(16, 1, 3, 3, seed=2) / 3 * gains,
        "w3": weights(64, 16, 3, 3, seed=3) / 12,
        "w4": weights(10, 64, seed=4) / 8,
        "b4": weights(10, seed=5),
    }
    return graph_of(nodes, {"image": (["batch", 3, 12, 12], TensorProto.FLOAT)}, {"scores": ["batch", 10]}, tensors)


def images(count=24, seed=0, batch=1):
    drawn = np.random.default_rng(seed).uniform(-1, 1, (count, 3, 12, 12)).astype(np.float32)
    return Rows({"image": drawn}, batch)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return onnx_artifact(tmp_path_factory.mktemp("backends"), net())


def made(root, artifact, collect=None, rows=None, **settings):
    data = {"val": rows or images()}
    return run_stage(root, quantize_stage, {"data": "val", **settings}, model=artifact, data=data, collect=collect)


def proto_of(artifact):
    return onnxfile.read(artifact.file("model.onnx"))


def constants(proto):
    return {name: onnxfile.array(tensor) for name, tensor in onnxfile.constants(proto.graph).items()}


def activation_grids(proto):
    held = constants(proto)
    return [
        (held[node.input[1]], held[node.input[2]])
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in held
    ]


# What they make


def test_onnxruntime_quantizes_at_its_best_unsigned_activations_and_signed_weights_per_channel(tmp_path, artifact):
    result = made(tmp_path, artifact, backend="ort")
    proto = proto_of(result)
    assert all(zero.dtype == np.uint8 and scale.ndim == 0 for scale, zero in activation_grids(proto))
    held = constants(proto)
    rounded = {value.shape: value.dtype for value in held.values() if value.ndim >= 2}
    assert rounded == dict.fromkeys([(16, 3, 3, 3), (16, 1, 3, 3), (64, 16, 3, 3), (10, 64)], np.dtype(np.int8))
    assert {(16,), (64,)} <= {value.shape for value in held.values() if value.dtype == np.float32}
    assert result.manifest.record["metrics"]["quantize_sqnr_db"] > 25
    assert result.manifest.record["metrics"]["quantized_layers"] == 4


def test_nncf_gives_every_activation_one_scale_and_runs_in_onnxruntime(tmp_path, artifact):
    result = made(tmp_path, artifact, backend="nncf")
    grids = activation_grids(proto_of(result))
    assert len(grids) >= 3
    assert all(scale.ndim == 0 for scale, _ in grids)
    assert result.manifest.record["metrics"]["quantize_sqnr_db"] > 15
    assert result.manifest.record["metrics"]["quantized_layers"] == 4


@pytest.mark.parametrize("settings", [{"backend": "ort"}, {"backend": "nncf"}], ids=lambda item: item["backend"])
def test_the_same_rows_give_the_same_bytes(tmp_path, artifact, settings):
    assert made(tmp_path / "one", artifact, **settings).id == made(tmp_path / "two", artifact, **settings).id


def test_onnxruntimes_dynamic_quantization_multiplies_integers(tmp_path, artifact):
    result = made(tmp_path, artifact, backend="ort", method="dynamic")
    counts = graph.operators(proto_of(result))
    assert counts["ConvInteger"] == 3
    assert counts["MatMulInteger"] == 1
    layers_told = {item["layer"]: item["quantized"] for item in result.manifest.record["results"]["layers"]}
    # Ours leaves convolutions alone here; what is told is what the other quantizer did.
    assert layers_told == {"first": True, "depthwise": True, "last": True, "head": True}


def test_percentiles_narrow_onnxruntimes_ranges(tmp_path, artifact):
    rows = images()
    rows.columns["image"][0, 0, 0, 0] = 50.0

    def widest(**settings):
        grids = activation_grids(proto_of(made(tmp_path, artifact, rows=rows, backend="ort", **settings)))
        return max(float(scale) for scale, _ in grids)

    assert widest(ranges="percentile", percentile=99.9) < 0.5 * widest()


@pytest.mark.parametrize("backend", ["ort", "nncf"])
def test_an_excluded_layer_stays_float_and_is_told(tmp_path, artifact, backend):
    result = made(tmp_path, artifact, backend=backend, exclude=["dep*"])
    left = {item["layer"]: item["reason"] for item in result.manifest.record["results"]["layers"]}
    assert left == {"first": "", "depthwise": "excluded by 'dep*'", "last": "", "head": ""}
    assert constants(proto_of(result))["w2"].dtype == np.float32


def test_operators_limit_onnxruntime(tmp_path, artifact):
    result = made(tmp_path, artifact, backend="ort", operators=["Conv"])
    left = {item["layer"]: item["quantized"] for item in result.manifest.record["results"]["layers"]}
    assert left == {"first": True, "depthwise": True, "last": True, "head": False}


def test_who_did_it_is_told_and_what_they_print_is_not(tmp_path, artifact, capfd):
    events = []
    made(tmp_path, artifact, backend="ort", collect=events)
    made(tmp_path, artifact, backend="nncf", collect=events)
    told = [event.text for event in events if isinstance(event, Note)]
    assert any("onnxruntime" in text and "quantize_static" in text for text in told)
    assert any("NNCF 3.4.0" in text for text in told)
    assert any(isinstance(event, Progress) and event.label == "calibrate" for event in events)
    assert capfd.readouterr() == ("", "")


def test_rows_are_streamed_one_feed_after_the_other(artifact):
    prepared, _ = prepare.prepare(proto_of(artifact))
    found = layers.choose(prepared, "static", None, ())
    events = []

    def read(_label, _limit):
        for batch in images(6).batches():
            events.append("given")
            yield batch

    outcome = backends.BACKENDS["ort"]["static"](prepared, found, Settings(), Evidence(read=read))
    assert events == ["given"] * 6
    assert isinstance(outcome, Outcome)


# What goes wrong


@pytest.mark.parametrize("backend", ["ort", "nncf"])
def test_a_failing_quantizer_is_an_error_that_names_it(artifact, backend):
    name = {"ort": "onnxruntime's quantizer failed", "nncf": "NNCF failed"}[backend]
    with pytest.raises(StageError, match=name):
        engine.quantize(proto_of(artifact), Settings(backend=backend), Evidence(read=lambda _label, _limit: ()))


@pytest.mark.parametrize("backend", ["ort", "nncf"])
def test_an_error_in_the_rows_is_not_blamed_on_the_quantizer(artifact, backend):
    def read(_label, _limit):
        raise StageError("the file is damaged")
        yield {}

    with pytest.raises(StageError, match="the file is damaged"):
        engine.quantize(proto_of(artifact), Settings(backend=backend), Evidence(read=read))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"backend": "ort", "correction": "rounding"}, "`backend: ort` does not know `correction`"),
        ({"backend": "ort", "equalize": True}, "`backend: ort` does not know `equalize`"),
        ({"backend": "ort", "ranges": "mse"}, "does not know `ranges: mse`"),
        ({"backend": "nncf", "ranges": "percentile"}, "`backend: nncf` does not know `ranges`"),
        ({"backend": "nncf", "operators": ["Conv"]}, "`backend: nncf` does not know `operators`"),
        ({"backend": "nncf", "method": "dynamic"}, "`backend: nncf` can do static, not 'dynamic'"),
        ({"backend": "ort", "method": "float16"}, "`backend: ort` can do static and dynamic, not 'float16'"),
        ({"backend": "tvm"}, "Input should be 'builtin', 'ort' or 'nncf'"),
    ],
)
def test_settings_that_a_backend_lacks_are_refused(settings, problem):
    with pytest.raises(ValidationError) as caught:
        quantize_stage.config(data="val", **settings)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "ort", "ranges": "percentile", "percentile": 99.9, "operators": ["Conv"], "exclude": ["a"]},
        {"backend": "ort", "method": "dynamic"},
        {"backend": "nncf", "exclude": ["a"], "rows": 8},
        {"backend": "builtin", "correction": "rounding"},
    ],
)
def test_settings_that_a_backend_has_are_taken(settings):
    assert quantize_stage.config(data="val", **settings).backend == settings["backend"]


def test_a_missing_package_is_found_before_anything_runs(monkeypatch, artifact):
    config = quantize_stage.config(data="val", backend="nncf")
    quantize_stage.preflight(config, Outside("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingError, match="nncf") as caught:
        quantize_stage.preflight(config, Outside("cpu"))
    assert caught.value.then == "pip install 'modelpack[peers]'"
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingError, match="nncf"):
        engine.quantize(proto_of(artifact), Settings(backend="nncf"), Evidence())


# What a silenced library pulls


def test_what_making_an_item_shows_is_shown_while_a_library_is_silent(capsys):
    def items():
        for number in range(2):
            print(f"reading {number}")
            yield number

    terminal = Terminal()
    with quiet():
        for number in terminal.passing(items()):
            print(f"chatter {number}")
    assert capsys.readouterr().out == "reading 0\nreading 1\n"
