import numpy as np
import pytest
from onnx import TensorProto, helper

import nets
from exported import WIDE
from modelpack.errors import StageError
from modelpack.numerics import graph, macs, models, onnxfile, prediction, rows
from modelpack.stages.export import export as export_stage
from modelpack.stages.quantize import quantize as quantize_stage
from onnx_support import graph_of, torch_artifact, weights
from support import Rows, run_stage

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize("name", WIDE)
def test_multiply_accumulates_are_those_that_torch_counts(tmp_path, exported, name):
    factory, inputs, more = WIDE[name]
    source, made = torch_artifact(tmp_path, factory, inputs, **more), exported[name]
    specs, _ = prediction.signature(source)
    sizes = {"height": 16, "width": 20, "sequence": 12}
    feed = models.tensors(rows.sample(specs, 1, 0, sizes), "cpu")
    found = graph.facts(onnxfile.read(made.file("model.onnx")), sizes)
    assert found.uncounted == ()
    assert found.macs == macs.count(models.load(source), feed)


def test_shapes_that_inference_cannot_reach_are_seen_by_running(tmp_path):
    made = run_stage(tmp_path, export_stage, {}, model=torch_artifact(tmp_path, "nets.py:recurrent", nets.SERIES))
    found = graph.facts(onnxfile.read(made.file("model.onnx")), {"time": 5})
    assert found.uncounted == ()
    by_name = {layer.name: layer.macs for layer in found.layers}
    one_direction = lambda inner: 3 * 10 * (inner + 10)  # noqa: E731
    assert by_name["gru/GRU"] == 5 * 2 * one_direction(12)
    assert by_name["gru/GRU_1"] == 5 * 2 * one_direction(20)


def test_rounding_changes_bytes_and_precision_but_not_the_work_behind_the_first_layer(tmp_path, exported):
    data = {"val": Rows({"image": weights(8, 1, 16, 16)})}
    rounded = run_stage(tmp_path, quantize_stage, {"data": "val"}, model=exported["cnn"], data=data)
    before, after = (graph.facts(onnxfile.read(item.file("model.onnx"))) for item in (exported["cnn"], rounded))
    assert (before.precision, after.precision) == ("float32", "int8")
    work = [[(layer.parameters, layer.macs) for layer in facts.layers] for facts in (before, after)]
    assert work[1][1:] == work[0][1:]
    assert work[1][0][1] == 4 * work[0][0][1]  # its one channel is padded to four
    assert sum(before.tensor_bytes.values()) == pytest.approx(4 * after.tensor_bytes["int8"], rel=0.05)
    assert {layer.dtype for layer in after.layers} == {"int8"}


def test_the_facts_of_a_small_graph():
    proto = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Reshape", ["h", "shape"], ["y"], name="reshape"),
        ],
        {"x": (["rows", 6], FLOAT)},
        {"y": ["rows", 2, 5]},
        {"w": weights(6, 10), "shape": np.array([0, 2, 5], np.int64)},
    )
    found = graph.facts(proto, {"rows": 4})
    assert found.opset == 17
    assert found.operators == {"MatMul": 1, "Reshape": 1}
    assert found.parameters == 60
    assert found.tensor_bytes == {"float32": 240, "int64": 24}
    assert found.macs == 4 * 6 * 10
    assert found.inputs == {"x": {"shape": ["rows", 6], "dtype": "float32", "range": None}}
    assert found.outputs == {"y": {"shape": ["rows", 2, 5], "dtype": "float32"}}
    assert found.layers == (graph.Layer("product", "MatMul", 60, "float32", 240),)
    assert found.to_json()["layers"][0]["macs"] == 240


def test_mixed_precision_names_both():
    proto = graph_of(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"x": (["rows", 8], FLOAT)},
        {"y": ["rows", 8]},
        {"q": np.ones((8, 8), np.int8), "s": np.float32(0.5), "v": weights(8, 8)},
    )
    found = graph.facts(proto)
    assert found.precision == "float32,int8"
    assert found.parameters == 128


@pytest.mark.parametrize(("written", "given"), [("batch_size", "batch_size"), ("2*n + 1", "d2_n___1"), (None, "x_0")])
def test_every_dynamic_dimension_gets_a_name_that_a_recipe_can_use(written, given):
    proto = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ([written, 3], FLOAT)}, {"y": [written, 3]}, {})
    assert graph.signature(proto)["inputs"]["x"]["shape"] == [given, 3]


def test_inputs_that_cannot_be_fed_are_refused():
    proto = graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": (["n"], TensorProto.STRING)}, {"y": ["n"]}, {})
    with pytest.raises(StageError, match="input 'x'"):
        graph.signature(proto)


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with pytest.raises(StageError, match=r"empty\.onnx: holds no ONNX graph"):
        onnxfile.read(path)
    path.write_bytes(b"\xff\xff\xff not protobuf")
    with pytest.raises(StageError, match="cannot be read as an ONNX file"):
        onnxfile.read(path)
