"""Models in: built from code and weights, kept as data, rebuilt exactly."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nets
from modelpack import canonical, document
from modelpack.artifact import Kind
from modelpack.bind import bind
from modelpack.errors import StageError
from modelpack.numerics import macs, models, rows, tensorfile
from modelpack.numerics.calling import call
from modelpack.stages.model import ModelConfig, model
from modelpack.tensors import TensorSpec
from support import run_stage

torch.set_num_threads(1)
HERE = Path(__file__).parent
IDS = {"ids": {"shape": ["batch", "n"], "dtype": "int64", "range": [0, 19]}}
ALL = [
    ("cnn", nets.IMAGE),
    ("encoder", nets.TOKENS),
    ("torch_encoder", {"tokens": {"shape": ["batch", "n", 16]}}),
    ("grouped", nets.PICTURE),
    ("recurrent", nets.SERIES),
    ("tied", IDS),
]


def imported(root, factory, inputs, **settings):
    return run_stage(root, model, {"factory": f"nets.py:{factory}", "inputs": inputs, **settings}, base=HERE)


def feed_for(artifact, count=3, seed=5):
    specs = {k: TensorSpec.model_validate(v) for k, v in artifact.read_json("signature.json")["inputs"].items()}
    return models.tensors(rows.sample(specs, count, seed), "cpu")


def outputs(module, feed):
    with torch.no_grad():
        return call(module, feed)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("factory", "inputs"), ALL)
def test_a_model_reloads_exactly_and_its_artifact_is_the_same_twice(tmp_path, factory, inputs):
    first = imported(tmp_path / "a", factory, inputs)
    second = imported(tmp_path / "b", factory, inputs)
    assert first.id == second.id
    assert first.kind is Kind.TORCH
    feed = feed_for(first)
    torch.manual_seed(123)  # loading must not depend on, nor disturb, the global generator
    before = torch.get_rng_state()
    one = outputs(models.load(first), feed)
    assert torch.equal(before, torch.get_rng_state())
    assert same(one, outputs(models.load(second), feed))
    described = first.read_json("signature.json")["outputs"]
    assert list(described) == list(one)
    assert all(len(described[name]["shape"]) == one[name].ndim for name in one)


def test_the_seed_draws_the_factory_s_own_weights(tmp_path):
    one = imported(tmp_path / "a", "cnn", nets.IMAGE)
    other = run_stage(tmp_path / "b", model, {"factory": "nets.py:cnn", "inputs": nets.IMAGE}, base=HERE, seed=1)
    weights = [load_file(a.file("weights.safetensors"))["stem.weight"] for a in (one, other)]
    assert not torch.equal(*weights)


def test_an_artifact_rebuilds_after_the_user_s_file_is_gone(tmp_path):
    home = tmp_path / "recipe"
    home.mkdir()
    shutil.copy(HERE / "nets.py", home)
    settings = {"factory": "nets.py:cnn", "arguments": {"width": 8}, "inputs": nets.IMAGE}
    artifact = run_stage(tmp_path, model, settings, base=home)
    shutil.rmtree(home)
    assert models.load(artifact).stem.out_channels == 8


def test_arguments_in_a_recipe_are_numbers_where_they_look_like_numbers(tmp_path):
    root, _ = document.parse("{factory: nets.py:cnn, arguments: {width: 8, name: '8'}, inputs: {x: {shape: [1]}}}", "r")
    problems = []
    config = bind(root, ModelConfig, problems, base=HERE)
    assert not problems
    assert config.arguments == {"width": 8, "name": "8"}


def test_a_full_disk_is_the_systems_error(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        tensorfile.write({"a": torch.zeros(3)}, tmp_path / "gone" / "weights.safetensors")
    assert caught.value.errno == errno.ENOENT


def test_a_model_that_cannot_take_one_row_or_gives_nan_is_told(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n\n"
        "class Pairs(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(4, 8)\n"
        "    def forward(self, x):\n        return self.layer(x).view(-1, 16) * float('nan')\n"
    )
    events = []
    settings = {"factory": "odd.py:Pairs", "inputs": {"x": {"shape": ["batch", 4]}}}
    artifact = run_stage(tmp_path, model, settings, collect=events)
    assert artifact.metrics["mac_count"] == 32
    assert artifact.manifest.record["warnings"] == [
        "output 'output' holds NaN or infinity on made-up inputs: are the weights and the ranges right?"
    ]


def test_outputs_follow_dynamic_dimensions(tmp_path):
    described = imported(tmp_path, "encoder", nets.TOKENS).read_json("signature.json")
    assert described["outputs"] == {
        "logits": {"shape": ["batch", 5], "dtype": "float32"},
        "embedding": {"shape": ["batch", 32], "dtype": "float32"},
    }
    picture = imported(tmp_path / "p", "grouped", nets.PICTURE).read_json("signature.json")
    # An odd height is rounded by the net, so the output's height is not the input's.
    assert picture["outputs"]["output_0"]["shape"] == ["batch", 1, "output_0_2", "output_0_3"]


def test_outputs_can_be_named_and_chosen(tmp_path):
    named = imported(tmp_path / "a", "grouped", nets.PICTURE, outputs=["mask", "score"])
    assert list(outputs(models.load(named), feed_for(named))) == ["mask", "score"]
    chosen = imported(tmp_path / "b", "encoder", nets.TOKENS, outputs=["embedding"])
    assert list(outputs(models.load(chosen), feed_for(chosen))) == ["embedding"]
    with pytest.raises(StageError, match="returns 2 tensors"):
        imported(tmp_path / "c", "grouped", nets.PICTURE, outputs=["a", "b", "c"])


def test_inputs_go_by_position_when_names_differ(tmp_path):
    renamed = {"left": nets.PICTURE["picture"], "right": nets.PICTURE["extra"]}
    artifact = imported(tmp_path, "grouped", renamed)
    assert list(artifact.read_json("signature.json")["inputs"]) == ["left", "right"]
    swapped = dict(reversed(renamed.items()))
    with pytest.raises(StageError, match="fails on the declared inputs"):
        imported(tmp_path, "grouped", swapped)
    read = [
        ModelConfig.model_validate({"factory": "nets.py:grouped", "inputs": i}, context={"base": HERE})
        for i in (renamed, swapped)
    ]
    assert canonical.digest(read[0]) != canonical.digest(read[1])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"image": {"shape": ["batch", 3, 16, 16]}}, r"image \['batch', 3, 16, 16\]"),
        ({"image": {"shape": ["batch", 1, 16, 16], "dtype": "int64"}}, "int64"),
    ],
)
def test_wrong_inputs_fail_at_once(tmp_path, inputs, says):
    with pytest.raises(StageError, match=says):
        imported(tmp_path, "cnn", inputs)


def test_a_dimension_that_cannot_vary_is_refused(tmp_path):
    (tmp_path / "fixed.py").write_text(
        "import torch\n"
        "class Fixed(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.place = torch.nn.Parameter(torch.zeros(1, 16, 4))\n"
        "    def forward(self, x):\n"
        "        return x + self.place\n"
    )
    settings = {"factory": "fixed.py:Fixed", "inputs": {"x": {"shape": ["batch", "length", 4]}}}
    with pytest.raises(StageError, match="'length' is declared dynamic"):
        run_stage(tmp_path, model, settings)


def test_a_model_that_wants_larger_inputs_is_tried_with_larger_ones(tmp_path):
    (tmp_path / "deep.py").write_text(
        "import torch\n"
        "def build():\n"
        "    layers = [torch.nn.Conv2d(2, 2, 7, stride=2) for _ in range(3)]\n"
        "    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    inputs = {"x": {"shape": ["batch", 2, "height", "width"]}}
    artifact = run_stage(tmp_path, model, {"factory": "deep.py:build", "inputs": inputs})
    assert artifact.read_json("signature.json")["outputs"]["output"]["shape"] == ["batch", 2]
    assert artifact.metrics["mac_count"] > 0


def test_edits_carry_attributes_shapes_buffers_and_dtypes(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    module = models.load(source)
    layer = module.layers[0]
    layer.fc1.weight, layer.fc1.bias = nn.Parameter(layer.fc1.weight[:40]), nn.Parameter(layer.fc1.bias[:40])
    layer.fc2.weight = nn.Parameter(layer.fc2.weight[:, :40])
    layer.fc1.out_features = layer.fc2.in_features = 40
    layer.norm1.eps = 1e-3
    layer.fc2.bias = None
    module.position_ids = module.position_ids[:, :32].clone()
    models.save(module, tmp_path / "out", like=source)
    edits = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert edits == {
        "layers.0.fc1": {"out_features": 40},
        "layers.0.fc2": {"in_features": 40, "bias": None},
        "layers.0.norm1": {"eps": 1e-3},
    }
    again = reloaded(tmp_path / "out", source)
    assert again.position_ids.shape == (1, 32)
    feed = feed_for(source)
    assert same(outputs(again, feed), outputs(module, feed))


def reloaded(path, like):
    """Load what `save` wrote without sealing it."""
    from modelpack.artifact import Artifact, File, Manifest

    files = tuple(
        File(p.relative_to(path).as_posix(), p.stat().st_size, canonical.file_digest(p))
        for p in sorted(path.rglob("*"))
        if p.is_file()
    )
    return models.load(Artifact(path, Manifest(like.kind, {}, files)))


def test_tied_weights_stay_tied_and_untied_ones_stay_apart(tmp_path):
    source = imported(tmp_path, "tied", IDS)
    module = models.load(source)
    assert module.decoder.weight is module.embedding.weight
    assert "decoder.weight" not in load_file(source.file("weights.safetensors"))
    module.decoder.weight = nn.Parameter(module.decoder.weight.detach() * 2)
    models.save(module, tmp_path / "out", like=source)
    again = reloaded(tmp_path / "out", source)
    assert again.decoder.weight is not again.embedding.weight
    feed = feed_for(source)
    assert same(outputs(again, feed), outputs(module, feed))


def test_a_replaced_module_cannot_be_saved(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    module = models.load(source)
    module.norm = nn.Identity()
    with pytest.raises(StageError, match=r"module 'norm'.*BatchNorm2d"):
        models.save(module, tmp_path / "out", like=source)


def test_factories_that_fail_say_so(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "def broken(): return 1 / 0\n"
        "def wrong(): return 5\n"
        "def lazy(): return torch.nn.Sequential(torch.nn.LazyLinear(3))\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x): return x, 'text'\n"
    )
    inputs = {"x": {"shape": ["batch", 3]}}
    for name, says in [
        ("broken", "ZeroDivisionError"),
        ("wrong", "gave int"),
        ("lazy", "lazy"),
        ("Odd", "returns a str"),
    ]:
        with pytest.raises(StageError, match=says):
            run_stage(tmp_path, model, {"factory": f"bad.py:{name}", "inputs": inputs})


def test_multiply_accumulates_of_known_layers():
    class Odd(nn.Conv2d):
        """A subclass, which counters by type overlook."""

    x = {"x": torch.zeros(1, 3, 8, 8)}
    assert macs.count(Odd(3, 5, 3, padding=1), x) == 8 * 8 * 5 * 3 * 9
    assert macs.count(nn.Conv2d(3, 6, 3, groups=3), x) == 6 * 6 * 6 * 9
    assert macs.count(nn.ConvTranspose2d(3, 4, 2, stride=2), x) == 8 * 8 * 3 * 4 * 4
    tokens = {"x": torch.zeros(1, 7, 16)}
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    assert macs.count(layer, tokens) == 7 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 7 * 7 * 16
    assert macs.count(nn.GRU(16, 8, batch_first=True).eval(), tokens) == 7 * 3 * (16 * 8 + 8 * 8)
    assert macs.count(nn.LSTM(16, 8, batch_first=True).eval(), tokens) == 7 * 4 * (16 * 8 + 8 * 8)
