import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import differences, export, graph, models, onnxfile, prediction, rows, runtime
from modelpack.numerics.differences import Tolerance
from modelpack.stages.export import export as export_stage
from modelpack.tensors import TensorSpec
from onnx_support import HERE, torch_artifact
from support import Rows, run_stage

NETS = {
    "cnn": ("nets.py:cnn", nets.IMAGE, {}),
    "encoder": ("nets.py:encoder", nets.TOKENS, {}),
    "torch_encoder": ("nets.py:torch_encoder", {"tokens": {"shape": ["batch", "sequence", 16]}}, {}),
    "grouped": ("nets.py:grouped", nets.PICTURE, {}),
    "recurrent": ("nets.py:recurrent", nets.SERIES, {}),
    "tied": ("nets.py:tied", {"ids": {"shape": ["batch", "time"], "dtype": "int64", "range": [0, 19]}}, {}),
}
TOLERANCE = Tolerance(1e-5, 1e-3)


@pytest.mark.parametrize("name", NETS)
def test_every_net_becomes_the_same_function(tmp_path, name, capfd):
    factory, inputs, settings = NETS[name]
    source = torch_artifact(tmp_path, factory, inputs, **settings)
    capfd.readouterr()
    made = run_stage(tmp_path, export_stage, {}, model=source)
    assert capfd.readouterr() == ("", "")
    assert made.metrics["export_difference"] < 1e-4
    assert made.metrics["opset"] == 20
    assert any("made-up" in text for text in made.manifest.record["warnings"])
    specs, outputs = prediction.signature(source)
    proto = onnxfile.read(made.file("model.onnx"))
    assert graph.facts(proto).opset == 20
    assert [item.name for item in proto.graph.input] == list(specs)
    assert [item.name for item in proto.graph.output] == list(outputs)
    torch_predict, onnx_predict = prediction.predictor(source), prediction.predictor(made)
    feed = rows.sample(specs, 5, 11, {"height": 20, "width": 24, "sequence": 7, "time": 9})
    expected, got = torch_predict(feed), onnx_predict(feed)
    for output in outputs:
        np.testing.assert_allclose(got[output], expected[output], atol=1e-4)


def test_dynamic_dimensions_keep_their_names(tmp_path):
    made = run_stage(tmp_path, export_stage, {}, model=torch_artifact(tmp_path, "nets.py:encoder", nets.TOKENS))
    described = graph.signature(onnxfile.read(made.file("model.onnx")))
    assert described["inputs"]["input_ids"]["shape"] == ["batch", "sequence"]
    assert described["inputs"]["attention_mask"]["shape"] == ["batch", "sequence"]
    assert described["outputs"]["logits"]["shape"] == ["batch", 5]


def test_a_fixed_shape_stays_fixed(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:cnn", {"image": {"shape": [1, 1, 16, 16]}})
    made = run_stage(tmp_path, export_stage, {}, model=source)
    described = graph.signature(onnxfile.read(made.file("model.onnx")))
    assert described["inputs"]["image"]["shape"] == [1, 1, 16, 16]


def test_real_rows_are_compared_at_several_batch_sizes_without_a_warning(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE)
    data = Rows({"image": np.random.default_rng(0).random((20, 1, 16, 16), np.float32), "label": np.zeros(20)})
    made = run_stage(tmp_path, export_stage, {"data": "val", "rows": 6}, model=source, data={"val": data})
    assert made.manifest.record["warnings"] == []
    assert made.manifest.record["results"]["compared"] == [
        "image [6, 1, 16, 16]", "image [3, 1, 16, 16]", "image [1, 1, 16, 16]"
    ]  # fmt: skip


def test_made_up_data_are_said_to_be_made_up(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE)
    data = {"noise": Rows({"image": np.zeros((4, 1, 16, 16), np.float32)})}
    made = run_stage(tmp_path, export_stage, {"data": "noise"}, model=source, data=data, synthetic=frozenset({"noise"}))
    assert "made-up inputs" in made.manifest.record["warnings"][0]


def test_the_opset_is_the_one_asked_for(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE)
    made = run_stage(tmp_path, export_stage, {"opset": 18}, model=source)
    assert graph.facts(onnxfile.read(made.file("model.onnx"))).opset == 18


def test_the_file_tells_nothing_of_the_machine_and_is_the_same_in_another_process(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:encoder", nets.TOKENS)
    made = run_stage(tmp_path, export_stage, {}, model=source)
    data = made.file("model.onnx").read_bytes()
    assert str(HERE).encode() not in data
    assert b"site-packages" not in data
    assert b"stack_trace" not in data
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from onnx_support import *;"
        "from modelpack.stages.export import export; import nets;"
        "root = Path(sys.argv[2]);"
        "print(run_stage(root, export, {}, model=torch_artifact(root, 'nets.py:encoder', nets.TOKENS)).id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(tmp_path / "other")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == made.id


def test_nodes_and_weights_are_named_by_the_users_modules(tmp_path):
    made = run_stage(tmp_path, export_stage, {}, model=torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE))
    proto = onnxfile.read(made.file("model.onnx"))
    names = [node.name for node in proto.graph.node]
    assert {"stem/Conv", "block1.depthwise/Conv", "head/Gemm"} <= set(names)
    assert len(set(names)) == len(names)
    assert "head.weight" in {item.name for item in proto.graph.initializer}


BAD = """
import torch
class Branch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x
class Pinned(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[1] > 100 else x + x.shape[1]
def branch():
    return Branch()
def pinned():
    return Pinned()
"""


def test_control_flow_that_depends_on_values_is_refused_with_torchs_reason(tmp_path, capfd):
    (tmp_path / "bad.py").write_text(BAD)
    source = torch_artifact(tmp_path, "bad.py:branch", {"x": {"shape": ["batch", 4]}}, base=tmp_path)
    with pytest.raises(StageError, match="data-dependent") as caught:
        run_stage(tmp_path, export_stage, {}, model=source)
    assert "must not depend on the values" in caught.value.then
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_a_size_is_said_to_limit_the_graph(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    source = torch_artifact(tmp_path, "bad.py:pinned", {"x": {"shape": ["batch", "width"]}}, base=tmp_path)
    made = run_stage(tmp_path, export_stage, {}, model=source)
    assert any("width = 1 to 100 only" in text for text in made.manifest.record["warnings"])


@pytest.fixture
def exported(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE)
    specs, outputs = prediction.signature(source)
    module = models.load(source)
    described = source.read_json("signature.json")["outputs"]
    made = export.export(module, rows.sample(specs, 2, 0), specs, described, 20)
    return made, export.cases(module, [rows.sample(specs, size, 1) for size in (1, 4)], outputs)


def spoil(proto: onnx.ModelProto, node_name: str) -> None:
    node = next(node for node in proto.graph.node if node.name == node_name)
    tensor = next(item for item in proto.graph.initializer if item.name == node.input[1])
    values = numpy_helper.to_array(tensor) + np.float32(0.5)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("wrong", ["stem/Conv", "block2.depthwise/Conv", "head/Gemm"])
def test_a_wrong_graph_fails_and_the_first_wrong_layer_is_named(exported, wrong):
    made, cases = exported
    assert export.prove(made, cases, TOLERANCE) < 1e-4
    spoil(made.model, wrong)
    with pytest.raises(StageError, match=f"the first layer that differs is '{wrong}'"):
        export.prove(made, cases, TOLERANCE)


@pytest.mark.parametrize("wrong", ["block2.depthwise/Conv", "head/Gemm"])
def test_a_layer_that_is_wrong_only_when_optimized_is_found_by_halving(exported, wrong):
    made, cases = exported
    expected = export.values(made, cases[0].feed)
    spoil(made.model, wrong)
    assert differences.first_layer(made.model, cases[0].feed, expected, TOLERANCE, "all") == wrong


def test_the_stage_seals_nothing_when_the_graph_is_wrong(tmp_path, monkeypatch):
    source = torch_artifact(tmp_path, "nets.py:cnn", nets.IMAGE)
    whole = export.export

    def wrong(*arguments):
        made = whole(*arguments)
        spoil(made.model, "block1.project/Conv")
        return made

    monkeypatch.setattr(export, "export", wrong)
    with pytest.raises(StageError, match=r"'block1\.project/Conv'"):
        run_stage(tmp_path, export_stage, {}, model=source)


def test_difference_knows_nan_infinity_and_shape():
    one = np.array([1.0, np.nan, np.inf])
    assert differences.difference(one, one) == 0.0
    assert differences.difference(one, np.array([1.0, 2.0, np.inf])) == np.inf
    assert differences.difference(one, np.array([1.0, np.nan, -np.inf])) == np.inf
    assert differences.difference(one, one[:2]) == np.inf
    assert differences.difference(np.array([3]), np.array([5])) == 2.0


def test_whole_numbers_must_be_equal():
    assert Tolerance(1.0, 1.0).limit(np.array([100])) == 0.0
    assert Tolerance(0.5, 0.1).limit(np.array([-10.0, np.inf])) == 1.5


def test_the_signature_is_the_torch_models_own(tmp_path):
    source = torch_artifact(tmp_path, "nets.py:grouped", nets.PICTURE)
    made = run_stage(tmp_path, export_stage, {}, model=source)
    assert json.loads(made.file("signature.json").read_bytes()) == source.read_json("signature.json")


def test_recurrence_holds_for_any_length_in_every_export_of_a_process():
    inputs = {"x": TensorSpec(shape=("batch", "time", 3))}
    example = {"x": np.zeros((2, 7, 3), np.float32)}
    described = {"output_0": {"shape": ["batch", "time", 4], "dtype": "float32"}}
    for kind in (nn.GRU, nn.LSTM):
        for _ in range(2):
            module = kind(3, 4, batch_first=True).eval()
            made = export.export(module, example, inputs, described, 20)
            series = torch.randn(3, 11, 3)
            with onnxfile.loadable(made.model) as place:
                got = runtime.execute(runtime.session(place), {"x": series.numpy()}, ["output_0"])
            np.testing.assert_allclose(got["output_0"], module(series)[0].detach().numpy(), atol=1e-5)


class _Namesakes(nn.Module):
    """A buffer and a parameter called like values that the exporter makes, and a parameter that is returned."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -0.5]))
        self.relu = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x):
        relu = functional.relu(x - self.mean) * self.relu
        return {"out": relu + relu.mean(1, keepdim=True), "relu": self.relu}


def test_names_of_weights_values_and_outputs_may_be_the_same():
    module = _Namesakes().eval()
    described = {"out": {"shape": ["batch", 2], "dtype": "float32"}, "relu": {"shape": [2], "dtype": "float32"}}
    example = {"x": np.random.default_rng(0).standard_normal((2, 2)).astype(np.float32)}
    made = export.export(module, example, {"x": TensorSpec(shape=("batch", 2))}, described, 20)
    found = export.cases(module, [example], described)
    assert export.prove(made, found, TOLERANCE) < 1e-6
    names = [item.name for item in made.model.graph.initializer]
    assert "mean" in names
    assert [item.name for item in made.model.graph.output] == ["out", "relu"]


class _Forked(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] > 4 else -x


def test_a_branch_on_the_size_is_found_by_comparing():
    module = _Forked().eval()
    described = {"output": {"shape": ["batch", 2], "dtype": "float32"}}
    small, large = (np.ones((count, 2), np.float32) for count in (2, 8))
    made = export.export(module, {"x": small}, {"x": TensorSpec(shape=("batch", 2))}, described, 20)
    with pytest.raises(StageError, match=r"(?s)does not compute what torch computes.*x \[8, 2\].*batch = 1 to 4 only"):
        export.prove(made, export.cases(module, [{"x": large}], described), TOLERANCE)


def test_an_input_and_an_output_of_one_name_are_refused():
    described = {"x": {"shape": ["batch", 2], "dtype": "float32"}}
    with pytest.raises(StageError, match=r"(?s)input 'x' and an output have the same name.*outputs:"):
        export.export(_Forked(), {"x": np.ones((2, 2))}, {"x": TensorSpec(shape=("batch", 2))}, described, 20)
