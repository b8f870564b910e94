"""What each group bears: measured as if it alone were cut, on labels or outputs, and told."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.numerics import macs, models
from modelpack.numerics.calling import call
from modelpack.numerics.pruning import Worth, choice, plan, sensitivity, sound, targets
from modelpack.numerics.pruning.plan import Removal
from modelpack.numerics.pruning.sensitivity import Bearing, Sensitivity
from modelpack.stages.prune import PruneConfig, prune
from modelpack.tensors import TensorSpec
from support import Rows, run_stage
from test_models import feed_for, imported

torch.set_num_threads(1)


def ranked(module, feed, method="l2"):
    found = sound.candidates(module, feed, frozenset(), 0)
    meter = targets.of_macs(0.5).opened(module, feed, found.groups)
    return choice.rank(module, found.groups, Worth(method), meter)


def decibels(wanted, found):
    wanted, found = wanted.double(), found.double()
    noise = float((wanted - found).square().sum())
    return 10 * math.log10(float(wanted.square().sum()) / noise)


@pytest.mark.parametrize("net", ["cnn", "encoder", "grouped"])
def test_figures_are_those_of_the_model_without_the_channels(tmp_path, net):
    inputs = {"cnn": nets.IMAGE, "encoder": nets.TOKENS, "grouped": nets.PICTURE}[net]
    source = imported(tmp_path, net, inputs)
    module, feed = models.load(source), feed_for(source, 4)
    ranking = ranked(module, feed)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = sensitivity.measure(module, ranking, [(feed, None)], ratios=(0.25, 0.5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (found.measure, found.whole, found.rows) == ("sqnr_db", None, 4)
    with torch.no_grad():
        wanted = next(iter(call(module, feed).values()))
        for group, units, bearing in zip(ranking.groups, ranking.units, found.groups, strict=True):
            assert (bearing.group, bearing.units) == (group.name, group.units)
            for ratio, value in zip(found.ratios, bearing.values, strict=True):
                count = max(1, round(ratio * group.units))
                roots = tuple(root for unit in units[:count] for root in unit)
                smaller = plan.apply(module, [Removal(group, roots)])
                output = next(iter(call(smaller, feed).values()))
                if value < 100:  # beyond, only rounding is left
                    assert value == pytest.approx(decibels(wanted, output), abs=0.01), bearing.group


def test_accuracy_is_measured_where_rows_have_classes(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    module, feed = models.load(source), feed_for(source, 8)
    with torch.no_grad():
        truth = next(iter(call(module, feed).values())).argmax(1)
    truth[0] = (truth[0] + 1) % 10
    ranking = ranked(module, feed)
    found = sensitivity.measure(module, ranking, [(feed, truth)])
    assert (found.measure, found.whole, found.ratios) == ("accuracy", 7 / 8, sensitivity.RATIOS)
    for group, units, bearing in zip(ranking.groups, ranking.units, found.groups, strict=True):
        roots = tuple(root for unit in units[: max(1, round(0.75 * group.units))] for root in unit)
        with torch.no_grad():
            answers = next(iter(call(plan.apply(module, [Removal(group, roots)]), feed).values())).argmax(1)
        assert bearing.values[3] == int((answers == truth).sum()) / 8
    floats = sensitivity.measure(module, ranking, [(feed, truth.float())])
    assert floats.measure == "sqnr_db", "values are no classes"


def test_channels_that_nothing_reads_are_borne(tmp_path):
    """Half of a layer's readers are zero: losing just these changes nothing, losing more does."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)
            with torch.no_grad():
                self.second.weight[:, ::2] = 0
                self.first.weight[::2] *= 0.01

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    module, feed = Half().eval(), {"x": torch.randn(16, 6)}
    (bearing,) = sensitivity.measure(module, ranked(module, feed), [(feed, None)]).groups
    assert bearing.values[:3] == (200.0, 200.0, 200.0)
    assert bearing.values[3] < 60


def test_some_channels_always_stay():
    module, feed = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)).eval(), {"x": torch.randn(4, 4)}
    module.forward_names = ("x",)
    ranking = ranked(module, {"input": feed["x"]})
    (bearing,) = sensitivity.measure(module, ranking, [({"input": feed["x"]}, None)], ratios=(0.1, 0.99)).groups
    assert bearing.values[0] == bearing.values[1], "one of two channels goes either way"


def test_the_least_borne_come_first():
    groups = (Bearing("a", 4, (0.9, 0.5)), Bearing("b", 4, (0.9, 0.1)), Bearing("c", 4, (1.0, 1.0)))
    found = Sensitivity("accuracy", 10, 1.0, (0.25, 0.5), groups)
    assert [item.group for item in found.worst(2)] == ["b", "a"]
    close = Sensitivity(
        "sqnr_db", 10, None, (0.25, 0.5), (Bearing("a", 4, (200.0, 1.0)), Bearing("b", 4, (30.0, 30.0)))
    )
    assert [item.group for item in close.worst(1)] == ["a"], "what nobody notices makes up for nothing"
    assert json.loads(json.dumps(found.to_json()))["groups"][1] == {"group": "b", "units": 4, "values": [0.9, 0.1]}


def images(labels=True):
    generator = np.random.default_rng(0)
    columns = {"image": generator.standard_normal((48, 1, 16, 16)).astype(np.float32)}
    return Rows(columns | ({"label": generator.integers(0, 10, 48)} if labels else {}))


@pytest.mark.parametrize("labels", [True, False])
def test_the_stage_records_it_and_names_the_most_sensitive(tmp_path, labels):
    source, events = imported(tmp_path, "cnn", nets.IMAGE), []
    wanted = {"macs": 0.6, "data": "train", "sensitivity": 40}
    data = {"data": {"train": images(labels)}, "synthetic": frozenset({"train"})}
    pruned = run_stage(tmp_path, prune, wanted, model=source, collect=events, **data)
    told = pruned.manifest.record["results"]["sensitivity"]
    assert (told["measure"], told["rows"]) == ("accuracy" if labels else "sqnr_db", 40)
    assert all(len(group["values"]) == len(told["ratios"]) == 4 for group in told["groups"])
    worst = min(told["groups"], key=lambda group: sum(min(value, 40) for value in group["values"]))["group"]
    notes = [getattr(event, "text", "") for event in events]
    (named,) = [note for note in notes if note.startswith(f"most sensitive: {worst}")]
    assert named.endswith(f"(by {'accuracy' if labels else 'signal to noise of the outputs'} on 40 rows)")
    assert any("invented rows" in text for text in pruned.manifest.record["warnings"])
    plain = run_stage(tmp_path / "plain", prune, {"macs": 0.6}, model=source)
    assert "sensitivity" not in plain.manifest.record["results"]
    feed = feed_for(source, 1)
    assert macs.count(models.load(plain), feed) == macs.count(models.load(pruned), feed), "looking changes nothing"


def test_rows_are_read_with_their_truth_as_far_as_asked():
    inputs = {"image": TensorSpec.model_validate(nets.IMAGE["image"])}
    found = sensitivity.gather(images().batches, inputs, 40, "label", "cpu")
    assert [len(feed["image"]) for feed, _ in found] == [32, 8]
    assert [len(truth) for _, truth in found] == [32, 8]
    assert all(truth is None for _, truth in sensitivity.gather(images().batches, inputs, 40, "other", "cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"macs": 0.5, "sensitivity": 8},
        {"macs": 0.5, "sensitivity": -1, "data": "d"},
        {"depth": 0.5, "sensitivity": 8, "data": "d"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        PruneConfig(**wrong)
