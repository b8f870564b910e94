"""Sparsity: exactly as many zeros as asked, where asked, chosen and repaired as the papers say, and kept afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import models, sparsity, zeros
from modelpack.numerics.fitting import Reading
from modelpack.numerics.sparsity import compressed, layers
from modelpack.stages.sparsify import SparsifyConfig, sparsify
from support import Rows, run_stage
from test_models import feed_for, imported, outputs, same

torch.set_num_threads(1)


def images(count=48):
    return Rows({"image": np.random.default_rng(0).standard_normal((count, 1, 16, 16)).astype(np.float32)}, 16)


def tokens(count=32, real=12):
    generator = np.random.default_rng(0)
    mask = np.zeros((count, 12), np.int64)
    mask[:, :real] = 1
    return Rows({"input_ids": generator.integers(0, 50, (count, 12)), "attention_mask": mask}, 8)


def run(root, source, wanted, rows=None, **more):
    wanted = {**wanted, **({"data": "train"} if rows is not None else {})}
    return run_stage(root, sparsify, wanted, model=source, data={"train": rows} if rows is not None else {}, **more)


def weights(artifact):
    return load_file(artifact.file("weights.safetensors"))


def texts(events):
    return [getattr(event, "text", "") for event in events]


@pytest.mark.parametrize(
    ("method", "refit"), [("magnitude", None), ("wanda", False), ("wanda", None), ("sparsegpt", None)]
)
@pytest.mark.parametrize(
    ("factory", "inputs", "rows"), [("cnn", nets.IMAGE, images()), ("encoder", nets.TOKENS, tokens())]
)
def test_every_layer_has_the_ratio_and_the_rest_is_as_it_was(tmp_path, method, refit, factory, inputs, rows):
    source = imported(tmp_path, factory, inputs)
    seen = rows if method != "magnitude" else None
    wanted = {"method": method, "ratio": 0.6, "refit": refit}
    one = run(tmp_path / "1", source, wanted, seen)
    two = run(tmp_path / "2", source, wanted, seen)
    assert one.id == two.id
    before, after = weights(source), weights(one)
    told = zeros.read(one)
    assert told.method == method
    assert told.layers
    for name, tensor in before.items():
        gone = int((after[name] == 0).sum())
        if name not in told.layers:
            assert torch.equal(tensor, after[name])
            continue
        width = tensor[0].numel()
        assert (
            gone
            == told.layers[name]
            == (round(0.6 * width) * len(tensor) if method == "wanda" else round(0.6 * tensor.numel()))
        )
        stayed = after[name] != 0
        assert torch.equal(tensor[stayed], after[name][stayed]) is (method == "magnitude" or refit is False)
    assert not any(
        "classifier" in name or "head" in name or "words" in name or "depthwise" in name for name in told.layers
    )
    assert one.metrics["sparsity"] == pytest.approx(0.6, abs=0.02)
    feed = feed_for(one)
    assert same(outputs(models.load(one), feed), outputs(models.load(two), feed))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("1:8", 1, 8)])
def test_of_each_inputs_in_a_row_as_many_stay_as_the_pattern_says(tmp_path, method, pattern, keep, of):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    made = run(tmp_path, source, {"method": method, "pattern": pattern}, images() if method != "magnitude" else None)
    told, after = zeros.read(made), weights(made)
    assert told.pattern == pattern
    assert {"down.weight", "block1.expand.weight", "block3.project.weight"} == set(told.layers) & {
        "down.weight", "block1.expand.weight", "block3.project.weight"
    }  # fmt: skip
    for name in told.layers:
        channels = after[name].movedim(1, -1).reshape(-1, of)
        assert ((channels != 0).sum(1) == keep).all(), name
    left = made.manifest.record["results"]["left_alone"]
    assert left["stem"] == f"its 1 inputs are no multiple of {of}"
    assert left["head"] == "it gives an output of the model"
    assert left["block1.depthwise"].startswith("depthwise")


def test_together_layers_of_small_weights_lose_more(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    made = run(tmp_path, source, {"scope": "global", "ratio": 0.5})
    before, after, told = weights(source), weights(made), zeros.read(made)
    assert told.zeros == round(0.5 * sum(after[name].numel() for name in told.layers))
    largest = max(float(before[name][after[name] == 0].abs().max()) for name in told.layers)
    assert all(float(after[name][after[name] != 0].abs().min()) >= largest for name in told.layers)
    assert len({count / after[name].numel() for name, count in told.layers.items()}) > 1


def test_shared_and_computed_weights_embeddings_and_idle_layers(tmp_path):
    ids = {"ids": {"shape": ["batch", "n"], "dtype": "int64", "range": [0, 19]}}
    made = run(tmp_path, imported(tmp_path, "tied", ids), {"head": True})
    assert set(zeros.read(made).layers) == {"inner.weight", "outer.weight"}
    assert made.manifest.record["results"]["left_alone"] == {"decoder": "it shares its weights with an embedding"}

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.again = nn.Linear(4, 4, bias=False)
            self.again.weight = self.one.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.idle = nn.Linear(4, 4)
            self.cube = nn.Conv3d(1, 1, 1)

        def forward(self, x):
            return self.again(self.normed(self.one(x)))

    torch.manual_seed(0)
    module = Odd().eval()
    feeds = [{"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}]
    found = layers.find(module, (), (), None, seen=True)
    told, left = sparsity.sparsify(module, found, sparsity.Way("sparsegpt", 0.5), Reading(lambda: feeds, None, "cpu"))
    assert told.layers == {"one.weight": 8}
    assert left["idle"] == "the model never calls it"
    assert left["normed"].startswith("its weight is computed")
    assert left["cube"].startswith("the inputs of a Conv3d cannot be looked at")
    assert module.again.weight is module.one.weight


def test_refitted_layers_give_nearly_what_they_gave(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    rows = tokens(128)
    feed = models.tensors(next(iter(rows.batches())), "cpu")
    wanted = outputs(models.load(source), feed)["embedding"]
    gaps = []
    for method in ("magnitude", "wanda", "sparsegpt"):
        for fitted in (False, True):
            seen = rows if fitted or method != "magnitude" else None
            made = run(tmp_path, source, {"method": method, "refit": fitted}, seen)
            gaps.append(float((outputs(models.load(made), feed)["embedding"] - wanted).norm()))
    assert all(after < 0.9 * before for before, after in zip(gaps[::2], gaps[1::2], strict=True)), gaps


def test_the_gain_is_told_as_it_is(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    events = []
    made = run(tmp_path, source, {"ratio": 0.8}, collect=events)
    before, after = made.metrics["source_compressed"], made.metrics["model_compressed"]
    assert before == compressed.size(source.file("weights.safetensors"))
    assert after == compressed.size(made.file("weights.safetensors")) < 0.65 * before
    told = next(text for text in texts(events) if "smaller only when compressed" in text)
    assert told.endswith("no speed on this runtime")
    assert f"zlib level {compressed.LEVEL}: " in told
    assert made.model_bytes == source.model_bytes


def test_what_cannot_be_done_is_said_with_what_to_do(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    with pytest.raises(StageError, match="exclude: no module matches 'layer'") as caught:
        run(tmp_path, source, {"exclude": ["layer"]})
    assert "layers" in caught.value.then
    with pytest.raises(StageError, match="no layer that can be sparse") as caught:
        run(tmp_path, source, {"exclude": ["layers"]})
    assert "layers.0.attention.query: excluded" in caught.value.then
    with pytest.raises(StageError, match="no rows that the model could read"):
        run(tmp_path, source, {"method": "wanda"}, images())
    module = nets.encoder().eval()
    with torch.no_grad():
        module.layers[1].fc1.weight[0, 0] = torch.nan
    found = layers.find(module, (), (), None, seen=False)
    with pytest.raises(StageError, match="not finite") as caught:
        sparsity.sparsify(module, found, sparsity.Way("magnitude", 0.5))
    assert caught.value.where == "layers.1.fc1"
    bad = [{"x": np.full((4, 8), np.inf, np.float32)}]
    net = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(StageError, match="what this layer reads is not finite"):
        sparsity.sparsify(
            net,
            layers.find(net, (), (), None, seen=True),
            sparsity.Way("wanda", 0.5),
            Reading(lambda: bad, None, "cpu"),
        )


def test_heads_are_found_or_the_model_is_refused():
    class Blind(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    layers_ = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    assert sparsity.heads.find(nn.Sequential(*layers_).eval(), {"input": torch.ones(2, 4)}) == {"2"}
    with pytest.raises(StageError, match="do not follow from its layers by gradients") as caught:
        sparsity.heads.find(Blind(*layers_).eval(), {"x": torch.ones(2, 4)})
    assert "`head: true`" in caught.value.then


def test_settings_are_checked():
    for wrong, says in (
        ({"pattern": "4:2"}, "is no pattern"),
        ({"pattern": "2/4"}, "is no pattern"),
        ({"pattern": "2:4", "ratio": 0.5}, "leave out `ratio`"),
        ({"method": "wanda"}, "wanda needs data"),
        ({"scope": "global", "pattern": "2:4"}, "belongs to `method: magnitude`"),
        ({"damping": 0.1}, "by `method: sparsegpt`, or by `refit`"),
        ({"data": "train", "refit": False}, "reads data for `refit` alone"),
        ({"refit": True}, "refit needs data"),
        ({"ratio": 1}, "less than 1"),
        ({"methods": "wanda"}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=says):
            SparsifyConfig.model_validate(wrong)
    assert SparsifyConfig.model_validate({"pattern": "2:4"}).pattern == "2:4"
    assert sparsify.refuses == {"quantized"}


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("factory", "inputs", "rows"), [("cnn", nets.IMAGE, images()), ("encoder", nets.TOKENS, tokens())]
)
def test_a_gpu_sets_to_zero_what_the_processor_does(tmp_path, method, factory, inputs, rows):
    source = imported(tmp_path, factory, inputs)
    seen = rows if method != "magnitude" else None
    here, there, again = (
        run(tmp_path / name, source, {"method": method, "ratio": 0.6}, seen, device=device)
        for name, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    assert zeros.read(here).layers == zeros.read(there).layers
    one, two = weights(here), weights(there)
    alike = [float(((one[name] == 0) == (two[name] == 0)).float().mean()) for name in zeros.read(here).layers]
    assert min(alike) > 0.97
