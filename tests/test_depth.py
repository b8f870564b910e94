"""Whole blocks left out: which a model can do without, which matters least, and students of fewer layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import models, structure
from modelpack.numerics.calling import call, outline
from modelpack.numerics.pruning import blocks, depth
from modelpack.numerics.randomness import seeded
from modelpack.stages.prune import PruneConfig, prune
from support import Rows, run_stage
from test_models import feed_for, imported, outputs, reloaded, same

torch.set_num_threads(1)


class Half(nn.Module):
    """One half of a BERT layer: something added to its input, then normalised."""

    def __init__(self, width):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, hidden_states, attention_mask=None):
        mixed = hidden_states if attention_mask is None else hidden_states * attention_mask
        return self.norm(hidden_states + self.dense(mixed))


class BertLayer(nn.Module):
    """As in transformers: keywords in, a tuple out."""

    def __init__(self, width):
        super().__init__()
        self.attention, self.output = Half(width), Half(width)

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):
        hidden = self.output(functional.gelu(self.attention(hidden_states, attention_mask)))
        return (hidden, attention_mask) if output_attentions else (hidden,)


class BertEncoder(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.num_hidden_layers, self.width = layers, layers  # a width that happens to be the number of layers
        self.layer = nn.ModuleList(BertLayer(width) for _ in range(layers))

    def forward(self, hidden_states, attention_mask):
        for number in range(self.num_hidden_layers):
            hidden_states = self.layer[number](hidden_states=hidden_states, attention_mask=attention_mask)[0]
        return {"last_hidden_state": hidden_states}


class Bert(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.embeddings, self.encoder = nn.Embedding(20, 8), BertEncoder(8, layers)

    def forward(self, ids):
        return self.encoder(self.embeddings(ids), torch.ones(8))


class Basic(nn.Module):
    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None if stride == 1 else nn.Sequential(nn.Conv2d(inputs, width, 1, stride))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + shortcut)


def resnet(blocks_a_stage=2):
    """A network with stages in a Sequential of Sequentials."""
    stages, width = [], 4
    for stage in range(2):
        items = [Basic(width, 4 * (stage + 1), stage + 1)]
        items += [Basic(4 * (stage + 1), 4 * (stage + 1)) for _ in range(blocks_a_stage)]
        stages.append(nn.Sequential(*items))
        width = 4 * (stage + 1)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


IDS = {"ids": torch.arange(12).view(2, 6)}
GREY = {"x": torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)}


def made(factory, *arguments):
    with seeded(0):
        return factory(*arguments).eval()


def paths(found):
    return [block.path for block in found.blocks]


def test_the_layers_of_a_bert_are_found_and_their_counter_follows():
    bert = made(Bert)
    found = blocks.find(bert, IDS)
    assert paths(found) == [f"encoder.layer.{number}" for number in range(4)]
    smaller = depth.thinned(bert, IDS, [0, 3])
    assert (smaller.encoder.num_hidden_layers, smaller.encoder.width, len(smaller.encoder.layer)) == (2, 4, 2)
    assert (bert.encoder.num_hidden_layers, len(bert.encoder.layer)) == (4, 4)
    hidden, ones = bert.embeddings(IDS["ids"]), torch.ones(8)
    by_hand = bert.encoder.layer[3](bert.encoder.layer[0](hidden, ones)[0], ones)[0]
    assert torch.equal(call(smaller, IDS)["last_hidden_state"], by_hand)


def test_residual_blocks_are_found_in_stages_and_those_that_change_shape_stay():
    found = blocks.find(made(resnet), GREY)
    assert paths(found) == ["1.0", "1.1", "1.2", "2.1", "2.2"]
    named = blocks.find(made(nets.cnn), {"image": torch.rand(2, 1, 16, 16)})
    assert paths(named) == ["block1", "block2", "block3"]
    assert paths(blocks.find(made(nets.torch_encoder), {"tokens": torch.rand(2, 5, 16)})) == [
        "encoder.layers.0",
        "encoder.layers.1",
    ]


def test_layers_that_only_keep_the_shape_are_no_blocks():
    """Without a way around its weights, nothing of a layer's input would be known behind it."""
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    found = blocks.find(plain.eval(), {"x": torch.rand(2, 4)})
    assert found.blocks == ()
    with pytest.raises(StageError, match="no blocks that it can do without"):
        depth.shallower(plain, {"x": torch.rand(2, 4)}, [], share=0.5)


class Shared(nn.Module):
    """Two stacks that one attribute counts, so that leaving a layer of either out would shorten both."""

    def __init__(self):
        super().__init__()
        self.layers = 3
        self.one = nn.ModuleList(Half(8) for _ in range(3))
        self.two = nn.ModuleList(Half(8) for _ in range(3))
        self.last = nn.ModuleList(Half(8) for _ in range(2))

    def forward(self, x):
        for number in range(self.layers):
            x = self.one[number](x)
        for number in range(self.layers):
            x = self.two[number](x)
        for layer in self.last:
            x = layer(x)
        return x


def test_a_counter_of_two_stacks_keeps_both_whole():
    found = blocks.find(made(Shared), {"x": torch.rand(2, 8)})
    assert paths(found) == ["last.0", "last.1"]
    assert "would not call" in found.left["one.0"] or "fails without it" in found.left["one.0"]


def quiet(block):
    """Let a residual block add nothing."""
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()


def test_the_block_that_does_least_goes_first_and_the_model_stays_what_it_was():
    net = made(resnet)
    for path in ("1.2", "2.1"):
        quiet(net.get_submodule(path))
    found = depth.shallower(net, GREY, [GREY], share=0.6)
    assert set(found.gone) == {"1.2", "2.1"}
    assert torch.allclose(net(GREY["x"]), found.module(GREY["x"]), atol=1e-6)
    rows = {row["block"]: row for row in found.table}
    assert rows["1.2"]["change"] == pytest.approx(0, abs=1e-9)
    assert rows["1.2"]["influence"] == pytest.approx(0, abs=1e-6)
    assert sorted(row["removed"] for row in found.table) == [0, 0, 0, 1, 2]
    assert [len(found.module[stage]) for stage in (1, 2)] == [2, 2]


@torch.no_grad()
def test_importance_is_the_outputs_change_measured_after_each_removal():
    net = made(resnet)
    found = depth.shallower(net, GREY, [GREY], share=0.4)
    gone = []
    for path in found.gone:
        wanted = net(GREY["x"])
        changes = {}
        for block in blocks.find(net, GREY).blocks:
            if block.path in gone:
                continue
            trial = [item for item in blocks.find(net, GREY).blocks if item.path in {*gone, block.path}]
            changes[block.path] = float((blocks.without(net, trial)(GREY["x"]) - wanted).square().sum())
        assert path == min(changes, key=changes.get)
        gone.append(path)
    assert len(gone) == 3


def test_blocks_can_be_named_and_kept():
    net = made(resnet)
    found = depth.shallower(net, GREY, [GREY], drop=["2.*"])
    assert set(found.gone) == {"2.1", "2.2"}
    assert depth.shallower(net, GREY, [GREY], share=0.8, keep=["1", "2.2.conv1"]).gone == ("2.1",)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"drop": ["3.*"]}, "no block matches '3.*'"),
        ({"drop": ["1.1"], "keep": ["1.*"]}, "drop and keep both name 1.1"),
        ({"share": 0.2, "keep": ["1"]}, "4 of the 5 blocks would go"),
        ({"drop": ["*"]}, "5 of the 5 blocks would go"),
    ],
)
def test_what_cannot_go_is_told(settings, says):
    with pytest.raises(StageError, match=says.replace("*", r"\*")):
        depth.shallower(made(resnet), GREY, [GREY], **settings)


def test_why_a_layer_is_no_block_is_told():
    with pytest.raises(StageError, match=r"no block matches '2\.0'") as caught:
        depth.shallower(made(resnet), GREY, [GREY], drop=["2.0"])
    assert "'2.0' must stay: its output has not the shape of its input" in caught.value.then
    assert caught.value.then.endswith("the blocks are 1.0, 1.1, 1.2, 2.1, 2.2")


def test_a_block_that_must_stay_is_named_with_its_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Half(8), BertLayer(8)

        def forward(self, x):
            return self.two(self.one(x))[0]

    odd = made(Odd)
    found = blocks.find(odd, {"x": torch.rand(2, 3, 8)})
    assert paths(found) == ["one", "two.output"]
    assert "fails without it (TypeError)" in found.left["two.attention"]
    with pytest.raises(StageError, match=r"no block matches 'two\.attention'") as caught:
        depth.shallower(odd, {"x": torch.rand(2, 3, 8)}, [], drop=["two.attention"])
    assert "'two.attention' must stay: the model fails" in caught.value.then


@pytest.mark.parametrize(
    ("keep", "stay"),
    [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (6, [0, 1, 2, 3, 4, 5]), ([4, 1], [1, 4])],
)
def test_students_keep_layers_evenly_or_by_number(keep, stay):
    teacher = made(Bert, 6)
    student = depth.thinned(teacher, IDS, keep)
    kept = [layer.output.dense.weight for layer in student.encoder.layer]
    assert all(
        torch.equal(weight, teacher.encoder.layer[number].output.dense.weight)
        for weight, number in zip(kept, stay, strict=True)
    )
    assert all(weight is not layer.output.dense.weight for weight in kept for layer in teacher.encoder.layer)


@pytest.mark.parametrize("keep", [0, 7, [], [1, 1], [0, 6], [-1]])
def test_students_of_layers_that_are_not_there_are_refused(keep):
    with pytest.raises(StageError, match="keep_layers") as caught:
        depth.thinned(made(Bert, 6), IDS, keep)
    assert "0: encoder.layer.0" in caught.value.then


def sentences(count=24):
    ids = np.random.default_rng(0).integers(0, 50, (count, 12))
    return Rows({"input_ids": ids, "attention_mask": np.ones_like(ids)}, 8)


@pytest.mark.parametrize("with_data", [True, False])
def test_the_stage_leaves_half_the_layers_out_and_reports_them(tmp_path, with_data):
    source = imported(tmp_path, "encoder", nets.TOKENS, arguments={"layers": 4})
    wanted = {"depth": 0.5, **({"data": "train"} if with_data else {})}
    events = []
    pruned = run_stage(tmp_path, prune, wanted, model=source, data={"train": sentences()}, collect=events)
    module = models.load(pruned)
    assert len(module.layers) == 2
    assert 0.4 < pruned.metrics["macs"] < 0.6
    assert models.parameter_count(module) == pruned.metrics["parameters"]
    results = pruned.manifest.record["results"]
    gone = sorted((row for row in results["blocks"] if row["removed"]), key=lambda row: row["removed"])
    assert [row["type"] for row in gone] == ["EncoderLayer"] * 2
    told = [getattr(event, "text", "") for event in events]
    assert f"left 2 of 4 blocks out: {gone[0]['block']}, {gone[1]['block']}" in told
    assert any("made-up rows" in text for text in pruned.manifest.record["warnings"]) is not with_data


def test_the_stage_drops_what_is_named_and_then_channels_go_too(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    shallow = run_stage(tmp_path, prune, {"drop": ["block2"]}, model=source)
    assert shallow.manifest.record["warnings"] == []
    assert isinstance(models.load(shallow).block2, nn.Identity)
    pruned = run_stage(tmp_path, prune, {"macs": 0.6}, model=shallow)
    module = models.load(pruned)
    assert isinstance(module.block2, nn.Identity)
    assert module.block1.expand.out_channels < 64
    assert outputs(module, feed_for(source))["output"].shape == (3, 10)
    with pytest.raises(StageError, match="keep: no module matches 'blok1'"):
        run_stage(tmp_path, prune, {"depth": 0.5, "keep": ["blok1"]}, model=source)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depth": 0}, "greater than 0"),
        ({"depth": 1.5}, "less than or equal to 1"),
        ({"depth": 0.5, "macs": 0.5}, "not macs and depth"),
        ({"drop": ["a"], "params": 0.5}, "not params and drop"),
        ({"depth": 0.5, "importance": "l2"}, "importance is about channels"),
        ({"drop": ["a"], "round_to": 8}, "round_to is about channels"),
        ({}, "such as"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        PruneConfig.model_validate(wrong)


def test_a_student_is_saved_and_loaded_as_data(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS, arguments={"layers": 4})
    teacher, feed = models.load(source), feed_for(source)
    student = depth.thinned(teacher, feed, 2)
    models.save(student, tmp_path / "out", like=source)
    again = reloaded(tmp_path / "out", source)
    assert len(again.layers) == 2
    assert same(outputs(again, feed), outputs(student, feed))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), factory=st.sampled_from(["resnet", "bert", "cnn", "encoder"]))
def test_any_choice_of_blocks_gives_outputs_of_the_same_form(data, factory):
    net, feed = {
        "resnet": (made(resnet), GREY),
        "bert": (made(Bert), IDS),
        "cnn": (made(nets.cnn), {"image": torch.rand(2, 1, 16, 16)}),
        "encoder": (made(nets.encoder), {"input_ids": IDS["ids"], "attention_mask": torch.ones_like(IDS["ids"])}),
    }[factory]
    found = blocks.find(net, feed).blocks
    gone = data.draw(st.lists(st.sampled_from(found), unique=True, min_size=1, max_size=len(found) - 1))
    smaller = blocks.without(net, gone)
    assert outline(smaller, feed) == outline(net, feed)
    rebuilt = structure.light(net)
    structure.change(rebuilt, structure.made(smaller))
    assert {name for name, _ in rebuilt.named_parameters()} == {name for name, _ in smaller.named_parameters()}
    expected = sum(p.numel() for p in net.parameters()) - sum(
        p.numel() for block in gone for p in net.get_submodule(block.path).parameters()
    )
    assert sum(p.numel() for p in smaller.parameters()) == expected
