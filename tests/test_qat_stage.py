"""Quantization-aware training as a step: what it leaves trains on, loads, exports and measures as integers will."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from pydantic import ValidationError

import nets
from modelpack.errors import StageError
from modelpack.numerics import export as exporting
from modelpack.numerics import models, onnxfile, optimize, prediction, rows, runtime
from modelpack.numerics.qat import agreement
from modelpack.numerics.training import checkpoint
from modelpack.stages.evaluate import evaluate
from modelpack.stages.export import export
from modelpack.stages.prune import prune
from modelpack.stages.qat import QatConfig, qat
from modelpack.tensors import TensorSpec
from onnx_support import torch_artifact
from support import Rows, run_stage

torch.set_num_threads(1)

FACTORIES = """
from torch import nn
from torch.nn import functional

class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.constant_(self.first.bias, -1000.0)
    def forward(self, x):
        return self.second(functional.relu(self.first(x)))

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
    def forward(self, x):
        return self.norm(x)

def dead():
    return Dead()

def bare():
    return Bare()

def mlp(width=24):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh(),
                         nn.Linear(width, 3))
"""
FLAT = {"x": {"shape": ["batch", 4]}}
CHEAP = {"data": "train", "epochs": 1, "lr": 1e-4}


def data_for(inputs, count=48, batch=16, seed=3):
    specs = {name: TensorSpec.model_validate(spec) for name, spec in inputs.items()}
    return Rows(rows.sample(specs, count, seed, {"sequence": 9}), batch)


SMALL = {"cnn": {"width": 8}, "encoder": {"layers": 1}}


def source(root, factory, inputs, **arguments):
    (root / "factories.py").write_text(FACTORIES)
    if factory in SMALL:
        return torch_artifact(root, f"nets.py:{factory}", inputs, arguments={**SMALL[factory], **arguments})
    return torch_artifact(root, f"factories.py:{factory}", inputs, base=root)


def trained(root, model, data, settings=CHEAP, teacher=None, **more):
    steps = {settings.get("teacher", "model"): teacher or model}
    return run_stage(root, qat, settings, model=model, data={"train": data}, steps=steps, **more)


def exported(root, model, data, **settings):
    return run_stage(root, export, {"data": "train", **settings}, model=model, data={"train": data})


class Made:
    """A net, trained to be quantized and exported, once for all tests of this file."""

    def __init__(self, root, factory, inputs, settings):
        self.root, self.inputs, self.data, self.settings = root, inputs, data_for(inputs), settings
        self.source = source(root, factory, inputs)
        self.trained = trained(root, self.source, self.data, settings)
        self.exported = exported(root, self.trained, self.data)
        self.graph = onnxfile.read(self.exported.file("model.onnx"))
        self.module = models.load(self.trained)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("cnn"), "cnn", nets.IMAGE, CHEAP)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("mlp"), "mlp", FLAT, {**CHEAP, "learn": False, "ranges": "percentile"})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("encoder"), "encoder", nets.TOKENS, {**CHEAP, "exclude": ["classifier/*"]})


@pytest.mark.parametrize("name", ["cnn", "mlp", "encoder"])
def test_integers_agree_with_torch_inside_and_outside(name, request):
    made = request.getfixturevalue(name)
    module = made.module
    fresh = data_for(made.inputs, count=40, batch=40, seed=8)
    feed = {key: value for batch in fresh.batches() for key, value in batch.items()}
    cases = exporting.cases(module, [feed], module.outputs)
    found = agreement.compare(made.graph, module, cases)
    assert found.inside >= 0.9999
    assert found.share >= 0.999
    assert set(found.shares) == set(runtime.LEVELS)
    assert made.exported.metrics["export_lsb_share"] >= 0.999
    # The comparison sees what it should: one wrong weight is one wrong layer.
    wrong = onnxfile.copied(made.graph)
    tensor = next(item for item in wrong.graph.initializer if item.data_type == TensorProto.INT8 and len(item.dims) > 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    with pytest.raises(StageError, match="lie within one step"):
        agreement.prove(wrong, module, cases)


def types(graph):
    return {item.name: item.data_type for item in graph.initializer}


def test_the_graph_is_standard_qdq_that_onnxruntime_computes_in_integers(cnn):
    graph = cnn.graph.graph
    kinds, makers = types(graph), onnxfile.producers(graph)
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == cnn.trained.metrics["quantized_layers"] == 12
    for node in layers:
        spot, weights, bias = (makers[name] for name in node.input)
        assert [item.op_type for item in (spot, weights, bias)] == ["DequantizeLinear"] * 3
        assert kinds[spot.input[2]] == TensorProto.UINT8
        assert kinds[weights.input[0]] == TensorProto.INT8
        assert kinds[bias.input[0]] == TensorProto.INT32
    assert {item.domain for item in cnn.graph.opset_import} == {""}
    fused = {node.op_type for node in optimize.by_onnxruntime(cnn.graph).graph.node}
    assert {"QLinearConv", "QGemm", "QLinearAdd"} <= fused
    assert not fused & {"Conv", "FusedConv", "Gemm", "Add", "Relu", "Clip", "DequantizeLinear"}


def test_the_channels_of_pictures_are_padded_for_the_kernel_that_reads_them_in_place(tmp_path):
    inputs = {"image": {**nets.IMAGE["image"], "shape": ["batch", 3, 12, 12]}}
    data = data_for(inputs)
    made = trained(tmp_path, source(tmp_path, "cnn", inputs, width=16, channels=3), data)
    graph = exported(tmp_path, made, data)
    assert graph.metrics["export_lsb_share"] >= 0.999
    model = onnxfile.read(graph.file("model.onnx"))
    assert [node.input[0] for node in model.graph.node if node.op_type == "Pad"] == ["image:quantized"]
    assert onnxfile.array(onnxfile.constants(model.graph)["stem.weight:rows:quantized"]).shape[1] == 4


def test_the_artifact_is_data_that_loads_as_the_quantized_model(cnn):
    names = {item.name for item in cnn.trained.manifest.files}
    assert {"model.json", "edits.json", "weights.safetensors", "quantizers.json"} <= names
    body = json.loads(cnn.trained.file("quantizers.json").read_text())
    assert body["weights"]["stem.weight"] == 0
    assert body["activations"]["relu"] == {"grid": "relu", "node": "relu", "readers": None}
    module = cnn.module
    feed = next(iter(cnn.data.batches()))
    got, again = (prediction.predictor(artifact)(feed)["output"] for artifact in (cnn.trained, cnn.exported))
    floating = prediction.predictor(cnn.source)(feed)["output"]
    step = np.ptp(floating) / 255
    assert np.abs(got - again).max() <= step
    assert 0 < np.abs(got - floating).max() < 40 * step
    weights = module.floating.get_parameter("stem.weight").detach()
    steps = weights / (weights.abs().amax((1, 2, 3), keepdim=True) / 127)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    # A bias off the grid of its products would tip rounded values in every layer behind it.
    products = weights.abs().amax((1, 2, 3)).double() / 127 * body["grids"]["image"]["scale"]
    steps = module.floating.get_parameter("stem.bias").detach().double() / products
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)


def test_an_export_is_measured_against_the_torch_model_that_rounds(cnn):
    settings = {"data": "train", "against": "qat"}
    steps = {"qat": cnn.trained}
    rounded = run_stage(cnn.root, evaluate, settings, model=cnn.exported, data={"train": cnn.data}, steps=steps)
    floating = run_stage(cnn.root, evaluate, settings, model=cnn.source, data={"train": cnn.data}, steps=steps)
    assert rounded.metrics["sqnr_db"] > floating.metrics["sqnr_db"] + 3


def test_the_same_seed_gives_the_same_artifact_also_after_an_interruption(tmp_path, mlp, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    settings = {**CHEAP, "epochs": 3, "ema": 0.9, "accumulate": 2}

    class PulledError(Exception):
        pass

    class Pulled(list):
        def append(self, event):
            if getattr(event, "label", "") == "epoch 3 of 3":
                raise PulledError

    straight = trained(tmp_path / "straight", mlp.source, mlp.data, settings)
    with pytest.raises(PulledError):
        trained(tmp_path / "pulled", mlp.source, mlp.data, settings, collect=Pulled())
    events = []
    resumed = trained(tmp_path / "pulled", mlp.source, mlp.data, settings, collect=events)
    assert any("continued after epoch 2" in getattr(event, "text", "") for event in events)
    assert resumed.id == straight.id
    history = [
        [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
        for lines in (artifact.manifest.record["results"]["history"] for artifact in (resumed, straight))
    ]
    assert history[0] == history[1]
    assert history[0][-1]["loss"] < history[0][0]["loss"]


def test_layers_left_out_stay_float_and_are_told(encoder):
    record = encoder.trained.manifest.record
    left = [layer for layer in record["results"]["layers"] if not layer["quantized"]]
    assert [(layer["layer"], layer["reason"]) for layer in left] == [("classifier/Gemm", "excluded by 'classifier/*'")]
    assert any("classifier/Gemm" in text for text in record["warnings"])
    assert types(encoder.graph.graph)["classifier.weight"] == TensorProto.FLOAT


def matrix_elements(artifact):
    return sum(value.numel() for value in models.load(artifact).parameters() if value.ndim > 1)


def test_what_was_pruned_stays_pruned(tmp_path):
    whole = source(tmp_path, "cnn", nets.IMAGE)
    small = run_stage(tmp_path, prune, {"macs": 0.5}, model=whole)
    data = data_for(nets.IMAGE)
    made = trained(tmp_path, small, data, teacher=whole)
    graph = exported(tmp_path, made, data)
    assert graph.metrics["export_lsb_share"] >= 0.999
    tensors = onnxfile.read(graph.file("model.onnx")).graph.initializer
    kept = [item for item in tensors if item.data_type == TensorProto.INT8 and len(item.dims) > 1]
    assert sum(int(np.prod(item.dims)) for item in kept) == matrix_elements(small) < 0.75 * matrix_elements(whole)


@pytest.mark.parametrize(
    ("factory", "settings", "told"),
    [
        ("mlp", {"exclude": ["nowhere*"]}, "no layer is named like 'nowhere\\*'"),
        ("bare", {}, "no layer that can be quantized"),
        ("dead", {}, "is 0 everywhere on the observed rows"),
        ("mlp", {"lr": 1e30, "clip": 0.0, "warmup": 0.0, "epochs": 2}, "the loss is (nan|inf) in epoch 1, step"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tmp_path, factory, settings, told):
    with pytest.raises(StageError, match=told):
        trained(tmp_path, source(tmp_path, factory, FLAT), data_for(FLAT), {**CHEAP, **settings})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "greater than 0"),
        ({"task": "none", "alpha": 0}, "nothing to learn"),
        ({"freeze_after": 0.5}, "learn: false"),
        ({"parallel": "fsdp"}, "learn: false"),
        ({"percentile": 100}, "less than 100"),
        ({"percentile": 99.9}, "belongs to `ranges: percentile`"),
        ({"bits": 4}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_meant(settings, told):
    with pytest.raises(ValidationError, match=told):
        QatConfig.model_validate({"data": "train", **settings})
    assert QatConfig.model_validate({"data": "train", "learn": False, "freeze_after": 0.5}).freeze_after == 0.5


RECIPE = """\
name: order
model:
  factory: factories.py:mlp
  inputs: {x: {shape: [batch, 4]}}
data:
  train: {random: {rows: 8}}
stages:
  - qat: {data: train}
"""


@pytest.mark.parametrize("after", ["prune: {macs: 0.5}", "distill: {data: train}", "qat: {data: train, epochs: 1}"])
def test_nothing_in_torch_follows(tmp_path, after):
    assert "cannot work on a quantized model" in problems(tmp_path, f"  - {after}\n    id: second\n")


@pytest.mark.parametrize("after", ["optimize:", "quantize: {data: train}"])
def test_nothing_that_would_round_again_follows_the_export(tmp_path, after):
    assert "cannot work on a quantized model" in problems(tmp_path, f"  - export:\n  - {after}\n")


def test_an_export_and_a_measurement_follow(tmp_path):
    assert problems(tmp_path, "  - export:\n  - evaluate: {data: train, against: model}\n") == ""


def problems(root, steps):
    from modelpack.errors import RecipeError
    from modelpack.recipe import load

    (root / "factories.py").write_text(FACTORIES)
    (root / "recipe.yaml").write_text(RECIPE + steps)
    try:
        load(root / "recipe.yaml")
    except RecipeError as error:
        return str(error) + "".join(str(item) for item in getattr(error, "problems", ()))
    return ""


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_integers_learn_on_a_gpu_and_agree_on_the_processor(tmp_path, name):
    inputs = {"cnn": nets.IMAGE, "encoder": nets.TOKENS}[name]
    net, data = source(tmp_path, name, inputs), data_for(inputs)
    one, two = (trained(tmp_path / place, net, data, device="cuda:0") for place in ("1", "2"))
    assert one.id == two.id
    made = exported(tmp_path, one, data)
    assert made.metrics["export_lsb_share"] >= 0.999
