"""Which blocks go, and in what order; students of fewer layers; the stage's settings for both."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from layered import GREY, IDS, Bert, made, resnet
from modelpack.errors import StageError
from modelpack.numerics import macs, models
from modelpack.numerics.pruning import blocks, cost, depth
from modelpack.numerics.randomness import seeded
from modelpack.stages.prune import PruneConfig, prune
from support import Rows, run_stage
from test_models import feed_for, imported, outputs, reloaded, same

torch.set_num_threads(1)


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
    assert sorted(row["order"] or 0 for row in found.table) == [0, 0, 0, 1, 2]
    assert [len(found.module[stage]) for stage in (1, 2)] == [2, 2]


@torch.no_grad()
def told(net, rows):
    """Give what a network says once its batch norms have seen some rows, by torch's own average."""
    known = copy.deepcopy(net)
    for layer in known.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    known.train()(rows)
    return known.eval()(rows)


@torch.no_grad()
def test_importance_is_the_outputs_change_for_what_is_saved_measured_after_each_removal():
    net, x = made(resnet), GREY["x"]
    found = depth.shallower(net, GREY, [GREY], share=0.4)
    gone, wanted, whole = [], told(net, x), macs.count(net, GREY)
    for path in found.gone:
        prices = {}
        for block in blocks.find(net, GREY).blocks:
            if block.path in gone:
                continue
            trial = [item for item in blocks.find(net, GREY).blocks if item.path in {*gone, block.path}]
            saved = 1 - macs.count(blocks.without(net, [block]), GREY) / whole
            prices[block.path] = float((told(blocks.without(net, trial), x) - wanted).square().sum()) / saved
        assert path == min(prices, key=prices.get)
        gone.append(path)
    assert len(gone) == 3


class Beside(nn.Module):
    """Adds what a layer makes of its input."""

    def __init__(self, shift):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, 0.0 if shift else 0.5)
        nn.init.constant_(self.norm.bias, shift)

    def forward(self, x):
        return x + self.norm(self.layer(x))


@torch.no_grad()
def test_what_batch_norms_make_up_for_is_no_loss():
    """One block only adds a number, which the norm behind it expects; the other one changes what its input says."""
    with seeded(0):
        body = nn.Sequential(Beside(20.0), Beside(0.0), nn.BatchNorm2d(4))
        net = nn.Sequential(nn.Conv2d(1, 4, 3), body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    feed = {"x": torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    for _ in range(60):
        net.train()(feed["x"])
    net.eval()
    stale = {
        block.path: float((blocks.without(net, [block])(feed["x"]) - net(feed["x"])).square().sum())
        for block in blocks.find(net, feed).blocks
    }
    assert stale["1.0"] > 2 * stale["1.1"]
    before = copy.deepcopy(net.state_dict())
    found = depth.shallower(net, feed, [feed], share=0.5)
    assert found.gone == ("1.0",)
    changes = {row["block"]: row["change"] for row in found.table}
    assert 1e-6 > changes["1.0"] < changes["1.1"] / 1000
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_blocks_that_cost_more_go_before_others_that_are_worth_as_little():
    net = made(resnet)
    (free,) = depth.shallower(net, GREY, [GREY], share=0.8).gone
    for path in ("1.1", "2.2"):
        found = depth.shallower(
            net, GREY, [GREY], share=0.8, costs=lambda _net, _feed, all_of, path=path: {
                item: 0.9 if item == path else 1e-4 for item in all_of
            }
        )  # fmt: skip
        assert found.gone == (path,)
        assert {row["block"]: row["cost"] for row in found.table}[path] == 0.9
    work = depth.by_work(net, GREY, ["1.0", "2.2", "4"])
    assert work["4"] == 0
    assert work["1.0"] == pytest.approx(2 * 64 * 4 * 4 * 9 * 2 / macs.count(net, GREY))
    assert free in {"1.0", "1.1", "1.2", "2.1", "2.2"}


def test_the_time_of_a_block_is_that_of_the_layers_inside():
    times = cost.Times({"a.one": 300.0, "a.two": 100.0, "ab": 200.0}, {"a.one": 50.0, "ab": 30.0}, rest=320.0)
    assert cost.of_modules(times, ["a", "ab", "c"]) == pytest.approx({"a": 0.45, "ab": 0.23, "c": 0.0})


def test_the_stage_weighs_blocks_by_time_on_this_machine(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    shallow = run_stage(tmp_path, prune, {"depth": 0.7, "cost": "latency"}, model=source)
    costs = [row["cost"] for row in shallow.manifest.record["results"]["blocks"]]
    assert len(costs) == 3
    assert all(share > 0 for share in costs)
    assert sum(costs) < 1
    assert [item.name for item in prune.assumes(PruneConfig(depth=0.5, cost="latency"), "cpu")] == ["machine"]
    assert not list(prune.assumes(PruneConfig(depth=0.5), "cpu"))


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
    gone = sorted((row for row in results["blocks"] if row["order"]), key=lambda row: row["order"])
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
