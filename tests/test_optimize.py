import importlib.util
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack.errors import MissingError, StageError
from modelpack.numerics import graph, onnxfile, optimize, prediction, rows
from modelpack.stage import Outside
from modelpack.stages.optimize import optimize as optimize_stage
from onnx_support import graph_of, onnx_artifact, weights
from support import Rows, run_stage


@pytest.mark.parametrize("tool", ["onnxruntime", "onnxslim"])
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_outputs_stay_and_the_graph_shrinks_or_stays(tmp_path, exported, name, tool, capfd):
    source = exported[name]
    made = run_stage(tmp_path, optimize_stage, {"tool": tool}, model=source)
    assert capfd.readouterr() == ("", "")
    assert made.metrics["nodes_after"] <= made.metrics["nodes_before"]
    assert made.metrics["optimize_difference"] < 1e-4
    feed = rows.sample(prediction.signature(source)[0], 3, 5)
    expected, got = prediction.predictor(source)(feed), prediction.predictor(made)(feed)
    for output, value in expected.items():
        np.testing.assert_allclose(got[output], value, atol=1e-4)
    again = run_stage(tmp_path / "again", optimize_stage, {"tool": tool}, model=source)
    assert again.id == made.id


def test_operators_are_fused_but_never_laid_out_for_one_processor(tmp_path, exported):
    made = run_stage(tmp_path, optimize_stage, {}, model=exported["cnn"])
    proto = onnxfile.read(made.file("model.onnx"))
    assert made.metrics["nodes_after"] < made.metrics["nodes_before"]
    assert {item.domain for item in proto.opset_import} <= {"", "com.microsoft"}
    assert not any("nchwc" in node.domain for node in proto.graph.node)


def test_real_rows_raise_no_warning(tmp_path, exported):
    data = {"val": Rows({"image": weights(9, 1, 16, 16)})}
    made = run_stage(tmp_path, optimize_stage, {"data": "val"}, model=exported["cnn"], data=data)
    assert made.manifest.record["warnings"] == []


def test_moved_outputs_are_refused_with_the_first_layer(tmp_path, exported, monkeypatch):
    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        twin = onnxfile.copied(model)
        tensor = next(item for item in twin.graph.initializer if item.name == "down.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))
        return twin

    monkeypatch.setitem(optimize.TOOLS, "onnxruntime", wrong)
    with pytest.raises(StageError, match="first layer that differs is 'down/Conv'"):
        run_stage(tmp_path, optimize_stage, {}, model=exported["cnn"])


def test_a_quantized_file_is_refused(tmp_path):
    proto = graph_of(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        {"x": (["batch", 4], TensorProto.FLOAT)},
        {"y": ["batch", 4]},
        {"scale": np.float32(0.1), "zero": np.uint8(3)},
    )
    assert graph.is_quantized(proto)
    with pytest.raises(StageError, match="quantized already"):
        run_stage(tmp_path, optimize_stage, {}, model=onnx_artifact(tmp_path, proto))


def test_a_missing_tool_is_named_before_anything_runs(tmp_path, exported, monkeypatch):
    config = optimize_stage.config(tool="onnxslim")
    optimize_stage.preflight(config, Outside("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingError, match="onnxslim"):
        optimize_stage.preflight(config, Outside("cpu"))
    optimize_stage.preflight(optimize_stage.config(), Outside("cpu"))
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(MissingError, match="onnxslim"):
        optimize.by_onnxslim(onnxfile.read(exported["cnn"].file("model.onnx")))


def test_the_planner_knows_that_it_refuses_quantized_models():
    assert "quantized" in optimize_stage.refuses
