"""Latency as a target: met by measuring, where time is spent, within a bound of trials; and what it says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import macs, pruning
from modelpack.numerics.pruning import Worth, aim, cost, latency, sound
from modelpack.numerics.pruning.cost import Times
from modelpack.numerics.pruning.importance import Evidence
from modelpack.numerics.randomness import seeded
from modelpack.stages.prune import PruneConfig, prune
from support import DEVICES, run_stage
from test_models import imported

torch.set_num_threads(1)


@given(st.floats(0.0, 0.6), st.floats(0.3, 3.0), st.floats(0.2, 0.98))
@settings(max_examples=200)
def test_aiming_finds_what_a_curve_can_give(overhead, bend, share):
    def measured(sought):
        return overhead + (1 - overhead) * sought**bend

    wanted = overhead + (1 - overhead) * share
    tried, sought = [], wanted
    while len(tried) < latency.TRIALS:
        tried.append((sought, measured(sought)))
        if abs(tried[-1][1] - wanted) <= latency.TOLERANCE * wanted:
            return
        sought = aim.following(tried, wanted)
        assert 0 < sought < 1
    pytest.fail(f"not met: {tried}")


def test_noise_that_turns_a_bracket_round_does_not_lead_astray():
    assert aim.following([(0.5, 0.55), (0.45, 0.62)], 0.6) == pytest.approx(0.475)
    assert 0 < aim.following([(0.6, 1.2)], 0.5) < 0.6
    assert aim.following([(0.5, 0.4)], 0.45) > 0.5


def test_models_take_turns_and_the_median_of_ratios_counts():
    noise = iter(range(10**6))

    def timer(milliseconds):
        # Every third call of either is disturbed; a ratio of means would show it.
        return lambda: milliseconds * (50.0 if next(noise) % 97 == 0 else 1.0)

    share, whole = latency.compare(timer(2.0), timer(0.5), clock=lambda: 0.0)
    assert share == pytest.approx(0.25)
    assert whole == 2.0


class Twin(nn.Module):
    """Two branches alike in everything but the time that they are said to take."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 64), nn.Linear(16, 64)
        self.one, self.two = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x):
        return self.one(functional.relu(self.left(x))) + self.two(functional.relu(self.right(x)))


class Stopwatch:
    """Takes times that follow from widths alone: a layer's products by its price, and what nothing can shorten."""

    def __init__(self, prices=None, overhead=0.0):
        self.prices, self.overhead, self.timed = prices or {}, overhead, 0

    def parts(self, module):
        return {
            path: layer.weight.numel() * self.prices.get(path, 1.0)
            for path, layer in module.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d))
        }

    def times(self, module):
        return Times(self.parts(module), {}, self.overhead)

    def timer(self, module):
        self.timed += 1
        milliseconds = (sum(self.parts(module).values()) + self.overhead) / 1000
        return lambda: milliseconds


def twin():
    with seeded(0):
        return Twin().eval()


def run(module, feed, keep, watch, worth=None, told=None):
    target, log = latency.of_latency(keep, watch, told.append if told is not None else print, clock=lambda: 0.0)
    return pruning.prune(module, feed, target, worth or Worth("l2")), log


def test_a_latency_is_met_though_a_part_of_the_time_never_shrinks():
    feed, module = {"x": torch.randn(2, 16)}, twin()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    watch = Stopwatch(overhead=1500.0)
    lines = []
    found, log = run(module, feed, 0.7, watch, told=lines)
    whole, part = watch.timer(module)(), watch.timer(found.module)()
    assert part / whole == pytest.approx(0.7, rel=latency.TOLERANCE)
    assert found.fraction == pytest.approx(part / whole) == log.trials[-1]["measured"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(lines) == len(log.trials)
    assert lines[-1].endswith(f"of the multiply-accumulates take {log.trials[-1]['measured']:.1%} of the time")
    told = log.to_json()
    assert told["original_ms"] == pytest.approx(whole)
    assert told["exports"] == 1 + len(told["trials"]) <= 1 + latency.TRIALS
    smallest = min(told["trials"], key=lambda trial: abs(trial["measured"] - 0.7))
    assert smallest["macs"] == pytest.approx(macs.count(found.module, feed) / macs.count(module, feed))
    json.dumps(told)


def test_channels_go_where_they_cost_time():
    feed, module = {"x": torch.randn(4, 16)}, twin()
    with torch.no_grad():  # the branches are worth the same
        module.right.load_state_dict(module.left.state_dict())
        module.two.load_state_dict(module.one.state_dict())
    evidence = Evidence([feed], lambda net, batch: net(batch["x"]).square().sum())
    widths = {}
    for dear in ("left", "right"):
        prices = {dear: 10.0, {"left": "one", "right": "two"}[dear]: 10.0}
        worth = Worth("taylor", evidence=Evidence([feed], evidence.loss))
        found, log = run(module, feed, 0.6, Stopwatch(prices), worth)
        widths[dear] = (found.module.left.out_features, found.module.right.out_features)
        table = {row["group"]: row for row in log.costs}
        assert table[dear]["unit_ms"] == max(row["unit_ms"] for row in log.costs)
        assert table[dear]["share"] == pytest.approx(10 / 11)
    assert widths["left"][0] < widths["left"][1]
    assert widths["right"][0] > widths["right"][1]


def test_what_cannot_be_met_is_told_after_a_bounded_number_of_trials():
    watch = Stopwatch(overhead=50_000.0)
    with pytest.raises(
        StageError, match=r"cannot keep 50% of the measured time; the nearest possible is 9\d(\.\d)?%"
    ) as caught:
        run(twin(), {"x": torch.randn(2, 16)}, 0.5, watch)
    assert "set latency: 0.9" in caught.value.then
    assert watch.timed <= 1 + latency.TRIALS


def test_a_stopwatch_that_says_anything_ends_too():
    class Random(Stopwatch):
        def timer(self, module):
            self.timed += 1
            milliseconds = 1.0 + (self.timed * 7919) % 13
            return lambda: milliseconds

    watch = Random()
    with pytest.raises(StageError, match="measured time"):
        run(twin(), {"x": torch.randn(2, 16)}, 0.011, watch)
    assert watch.timed <= 1 + latency.TRIALS


def test_costs_follow_from_the_times_of_layers():
    module, feed = twin(), {"x": torch.randn(2, 16)}
    groups = sorted(sound.candidates(module, feed, frozenset(), 0).groups, key=lambda group: group.name)
    times = Times({"left": 300.0, "one": 100.0, "right": 200.0}, {"left": 50.0}, rest=350.0)
    estimate = cost.formula(times, module, groups)
    assert [group.name for group in groups] == ["left", "right"]
    assert times.total == 1000.0
    assert estimate((0, 0)) == pytest.approx(1.0)
    assert estimate((32, 0)) == pytest.approx((150 + 50 + 200 + 25 + 350) / 1000)
    assert estimate((0, 16)) == pytest.approx(0.95)
    left, right = cost.table(estimate, groups, 2.0)
    assert left == {
        "group": "left",
        "units": 64,
        "unit_ms": pytest.approx(2.0 * 0.225 / 32),
        "share": pytest.approx(0.45),
    }
    assert right["unit_ms"] == pytest.approx(2.0 * 0.1 / 32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_every_layer_of_an_export_is_found_on_the_clock(exported, name, device):
    from modelpack.numerics import models, onnxfile, prediction, rows

    artifact = exported[name]
    inputs, _ = prediction.signature(artifact)
    module = {"cnn": lambda: nets.cnn(32), "encoder": lambda: nets.encoder(64, hidden=128, vocabulary=500)}[
        name
    ]().eval()
    feed = rows.sample(inputs, 1, 0)
    found = cost.measured(onnxfile.read(artifact.file("model.onnx")), module, feed, device)
    matrices = {path for path, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    assert set(found.products) == matrices
    assert set(found.outputs) <= matrices
    assert all(value > 0 for value in found.products.values())
    assert found.total >= sum(found.products.values())
    if name == "encoder":  # what attention computes belongs to the heads, and shrinks with them
        groups = sound.candidates(module, models.tensors(feed, "cpu"), frozenset(), 0).groups
        estimate = cost.formula(found, module, groups)
        heads = [number for number, group in enumerate(groups) if group.heads]
        assert heads
        assert all(row["share"] > 0 for row in cost.table(estimate, groups, 1.0))
        assert any(path.endswith(("query", "key", "value")) for path in found.outputs)


def test_nodes_without_their_first_output_are_found_too():
    from onnx import TensorProto, helper

    from modelpack.numerics.measure import profile

    values = {"x": [3, 1, 4], "w": [1, 12, 4], "r": [1, 12, 4], "b": [1, 24]}
    gru = helper.make_node("GRU", ["x", "w", "r", "b"], ["", "last"], "gru", hidden_size=4)
    relu = helper.make_node("Relu", ["last"], ["y"], "relu")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
    graph = helper.make_graph([gru, relu], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    names = profile.tags(model, ["gru", "relu"])
    assert "" not in names
    feed = {name: np.zeros(shape, np.float32) for name, shape in values.items()}
    (kernels,) = profile.fastest([profile.tagged(model, names)], feed)
    assert {kernel.place for kernel in kernels} == {0, 1}


def test_a_model_that_cannot_be_exported_is_told_what_needs_no_export():
    from modelpack.numerics import rows
    from modelpack.numerics.pruning.stopwatch import Exports
    from modelpack.tensors import TensorSpec

    class Odd(Twin):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) < 1e9 else x

    inputs = {"x": TensorSpec.model_validate({"shape": ["batch", 16]})}
    watch = Exports(inputs, {"output": {"shape": ["batch", 8], "dtype": "float32"}}, rows.sample(inputs, 1, 0))
    with pytest.raises(StageError, match="cannot export") as caught:
        watch.timer(Odd().eval())
    assert "`macs` needs none" in caught.value.then


@pytest.mark.parametrize("device", DEVICES)
def test_the_stage_measures_exports_and_records_them(tmp_path, monkeypatch, device):
    monkeypatch.setattr(latency, "TOLERANCE", 100.0)  # whatever this machine says, the first trial will do
    source, events = imported(tmp_path, "cnn", nets.IMAGE), []
    pruned = run_stage(tmp_path, prune, {"latency": 0.8}, model=source, collect=events, device=device)
    told = pruned.manifest.record["results"]["latency"]
    assert (told["asked"], told["exports"], len(told["trials"])) == (0.8, 2, 1)
    assert told["measured"] == pruned.metrics["latency_fraction"] == told["trials"][0]["measured"] > 0
    assert 0 < told["trials"][0]["macs"] < 1
    assert told["original_ms"] > 0
    assert told["seconds"] > 0
    assert {row["group"] for row in told["costs"]} >= {"stem.0"} or len(told["costs"]) > 2
    assert all(0 < row["share"] <= 1 and row["unit_ms"] > 0 for row in told["costs"])
    assert any("of the unpruned model's time on this machine" in getattr(event, "text", "") for event in events)


def test_the_machine_is_assumed_where_its_time_counts():
    def assumed(**settings):
        return {item.name: item.value for item in prune.assumes(PruneConfig(**settings), "cpu")}

    machine = assumed(latency=0.5)["machine"]
    assert "cores" in machine
    assert "onnxruntime" in machine
    assert "machine" not in assumed(macs=0.5)


@pytest.mark.parametrize(
    "wrong", [{"latency": 0}, {"latency": 1.5}, {"latency": 0.5, "macs": 0.5}, {"latency": 0.5, "depth": 0.5}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        PruneConfig(**wrong)


def test_a_latency_in_steps_is_a_fraction_of_the_model_before_the_first():
    feed, module, watch = {"x": torch.randn(2, 16)}, twin(), Stopwatch(overhead=1500.0)
    target, log = latency.of_latency(0.7, watch, print, clock=lambda: 0.0)
    first = pruning.prune(module, feed, replace(target, keep=0.85), Worth("l2"))
    second = pruning.prune(first.module, feed, replace(target, whole=module), Worth("l2"))
    took = watch.timer(second.module)() / watch.timer(module)()
    assert second.fraction == pytest.approx(took) == pytest.approx(0.7, rel=latency.TOLERANCE)
    assert log.trials[-1]["macs"] == pytest.approx(macs.count(second.module, feed) / macs.count(module, feed))
    assert log.exports == 2 + len(log.trials)
    assert watch.timed == 1 + 1 + len(log.trials) + 2  # the whole model once, and the one between once more
