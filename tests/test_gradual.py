"""Gradual pruning: the curve, healing after each step, and the same model whenever and however often it is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import nets
from crewing import together
from modelpack.errors import RecipeError, StageError
from modelpack.numerics import macs, models, zeros
from modelpack.numerics.pruning import gradual, latency
from modelpack.numerics.training import checkpoint, crew
from modelpack.recipe import load
from modelpack.stages.distill import distill
from modelpack.stages.prune import PruneConfig, prune
from modelpack.stages.recover import recover
from modelpack.stages.sparsify import sparsify
from support import Rows, run_stage
from test_distill import accuracy, patterns
from test_models import feed_for, imported
from test_sparsify import texts

HERE = Path(__file__).parent
# A layer that stays whole keeps its order in memory too, which an interrupted try must come back to.
CHEAP = {"macs": 0.5, "keep": ["down"], "data": "train", "round_to": 1, "schedule": {"steps": 3, "lr": 3e-3}}


@given(st.floats(0.01, 0.99), st.integers(2, 60))
def test_the_curve_falls_ever_slower_to_what_shall_stay(keep, steps):
    wanted = [1.0, *gradual.fractions(keep, steps)]
    falls = [before - after for before, after in itertools.pairwise(wanted)]
    assert len(wanted) == steps + 1
    assert wanted[-1] == keep
    assert all(fall > 0 for fall in falls)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(falls))
    middle = wanted[1]  # 1 - s_t of the paper's formula, with no sparsity at the start
    assert middle == pytest.approx(1 - ((1 - keep) + (0 - (1 - keep)) * (1 - 1 / steps) ** 3))


def pruned(root, source, settings, data=None, **more):
    return run_stage(root, prune, {**CHEAP, **settings}, model=source, data={"train": data or patterns(96)}, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    net = imported(root, "cnn", nets.IMAGE)
    settings = {"data": "train", "epochs": 6, "alpha": 0.0, "lr": 5e-3}
    return run_stage(root, distill, settings, model=net, steps={"model": net}, data={"train": patterns()})


@pytest.fixture(scope="module")
def straight(trained, tmp_path_factory):
    return pruned(tmp_path_factory.mktemp("straight"), trained, {})


@pytest.mark.cuda
def test_a_net_is_pruned_in_steps_on_a_gpu(tmp_path, trained):
    one, two = (pruned(tmp_path / name, trained, {"importance": "taylor"}, device="cuda:0") for name in ("1", "2"))
    assert one.id == two.id
    assert one.metrics["macs"] == pytest.approx(0.5, rel=0.02)
    held_out = patterns(96, seed=1)
    assert accuracy(one, held_out) > accuracy(trained, held_out) - 0.1


def test_a_net_is_pruned_in_steps_and_needs_no_recovery(tmp_path, trained, straight):
    events = []
    again = pruned(tmp_path, trained, {}, collect=events)
    assert again.id == straight.id
    feed = feed_for(trained)
    left = macs.count(models.load(again), feed) / macs.count(models.load(trained), feed)
    assert left == pytest.approx(0.5, rel=0.02)
    assert again.metrics["macs"] == pytest.approx(left)
    steps = again.manifest.record["results"]["schedule"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["wanted"] for row in steps] == gradual.fractions(0.5, 3)
    assert all(row["kept"] == pytest.approx(row["wanted"], rel=0.1) for row in steps)
    assert steps[-1]["kept"] == pytest.approx(left, rel=1e-6)
    assert any(text.startswith("kept ") and "in 3 steps, healed after each" in text for text in texts(events))
    assert {"block1.project", "block3.project"} <= set(again.manifest.record["results"]["refitted"])
    layers = {row["layer"]: row for row in again.manifest.record["results"]["layers"]}
    module = models.load(again)
    for path, row in layers.items():
        assert (
            row["after"][1] == module.get_submodule(path).weight.shape[0] < row["before"][1]
            or row["after"][0] < row["before"][0]
        )
    held_out = patterns(96, seed=1)
    at_once = run_stage(tmp_path, prune, {"macs": 0.5, "round_to": 1}, model=trained)
    whole, healed, broken = (accuracy(item, held_out) for item in (trained, again, at_once))
    assert whole > 0.9
    assert healed > whole - 0.1
    assert broken < healed - 0.2


class Interrupted(list):
    """Fails after so many events, as a killed process does."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def append(self, event):
        super().append(event)
        if len(self) > self.after:
            raise KeyboardInterrupt


def test_however_often_it_is_interrupted_the_result_is_the_same(tmp_path, monkeypatch, trained, straight):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    made, patience, tries, told = None, 3, 0, []
    while made is None:
        events = Interrupted(patience)
        try:
            made = pruned(tmp_path, trained, {}, collect=events)
        except KeyboardInterrupt:
            tries, patience = tries + 1, patience + 1
        told += texts(events)
    assert made.id == straight.id
    assert tries > 5
    assert {f"continued after step {step} of an interrupted try" for step in (1, 2, 3)} & set(told)
    scratches = [path for path in (tmp_path / "store" / "scratch").rglob("*") if path.is_file()]
    assert [path.suffix for path in scratches] == [".lock"]


CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_gradual
from modelpack.artifact import Artifact
test_gradual.killed(Path({root!r}), Artifact.load(Path({source!r})))
"""


def killed(root, source):
    """Prune, and be killed while healing the second step."""
    checkpoint.PAUSE, checkpoint.COST = 0.0, 0

    class Killer(list):
        def append(self, event):
            healing = getattr(event, "label", "").startswith("epoch 1") and event.done == 2
            if healing and list((root / "store").rglob("002-training")):
                os.kill(os.getpid(), signal.SIGKILL)

    pruned(root, source, {}, collect=Killer())


def test_a_killed_run_continues_with_the_same_result(tmp_path, trained, straight):
    code = CHILD.format(here=str(HERE), root=str(tmp_path), source=str(trained.path))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert list((tmp_path / "store").rglob("002-cut/state.json"))
    events = []
    assert pruned(tmp_path, trained, {}, collect=events).id == straight.id
    assert "continued after step 2 of an interrupted try" in texts(events)


def shared(root, source):
    """Prune as one of a crew; gives the artifact's id, what was kept after each step, and whether files were kept."""
    from modelpack.artifact import Artifact

    mine = Path(root, str(crew.rank()))
    wanted = {"schedule": {"steps": 2, "lr": 3e-3}}
    made = pruned(mine, Artifact.load(Path(source)), wanted, patterns(64))
    cutters = []

    def cut(module, keep, _slack):
        cutters.append(crew.rank())
        return module, keep, {}

    done = gradual.prune(nets.cnn(), [0.6, 0.3], cut, lambda *_: {}, mine / "alone", alone=True)
    kept = [row["kept"] for row in made.manifest.record["results"]["schedule"]]
    return [made.id, kept, crew.told(cutters), [row["kept"] for row in done.rows], crew.summed({"cuts": len(cutters)})]


def test_the_processes_of_a_crew_prune_and_heal_together(tmp_path, trained):
    one, other = together("test_gradual", "shared", root=tmp_path, source=trained.path)
    assert one == other
    assert one[1][-1] == pytest.approx(0.5, rel=0.02)
    assert one[2:] == [[0, 0], [0.6, 0.3], {"cuts": 2}]  # the first process alone, where it takes times
    assert prune.trains(PruneConfig.model_validate(CHEAP))
    assert not prune.trains(PruneConfig(macs=0.5))


def test_a_time_is_met_in_steps_too(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "TOLERANCE", 100.0)  # whatever this machine says, the first trial will do
    source = imported(tmp_path, "tied", {"ids": {"shape": ["batch", 4], "dtype": "int64", "range": [0, 19]}})
    rows = Rows({"ids": np.arange(64).reshape(16, 4) % 20})
    wanted = {"latency": 0.8, "data": "train", "schedule": {"steps": 2}}
    made = run_stage(tmp_path, prune, wanted, model=source, data={"train": rows})
    results = made.manifest.record["results"]
    assert [row["wanted"] for row in results["schedule"]] == gradual.fractions(0.8, 2)
    assert results["schedule"][-1]["kept"] == made.metrics["latency_fraction"] == results["latency"]["measured"]
    assert len(results["latency"]["trials"]) == 2
    assert results["latency"]["exports"] == 4


def test_what_is_left_of_a_try_and_cannot_be_read_is_named(tmp_path, trained):
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path, trained, {}, collect=Interrupted(24))
    (state,) = (tmp_path / "store").rglob("state.json")
    state.write_text("{")
    with pytest.raises(StageError, match="what an interrupted try left cannot be read") as caught:
        pruned(tmp_path, trained, {})
    assert caught.value.where == str(state.parent)


def test_the_truth_is_used_where_it_is_asked_for(tmp_path, trained, straight):
    assert pruned(tmp_path, trained, {"loss": "task"}).id != straight.id
    unlabelled = Rows({"image": patterns(64).columns["image"]})
    with pytest.raises(StageError, match="needs the column 'label'"):
        pruned(tmp_path, trained, {"loss": "task"}, unlabelled)


def test_the_mask_is_for_healing_too(tmp_path, trained):
    with pytest.raises(StageError, match="no input 'image' that could be a mask"):
        pruned(tmp_path, trained, {"mask": "image", "refit": False})


def test_a_step_that_cannot_be_cut_is_named(tmp_path, trained):
    with pytest.raises(StageError, match="cannot keep") as caught:
        pruned(tmp_path, trained, {"macs": 0.01, "keep": ["block1", "block2"]})
    assert caught.value.where.startswith("step ")
    assert "another number of steps" in caught.value.then


def test_a_step_that_cannot_be_healed_is_named(tmp_path, trained):
    wild = {"steps": 2, "lr": 1e12, "clip": 0, "warmup": 0}
    with pytest.raises(StageError, match="loss is nan in epoch 1, step") as caught:
        pruned(tmp_path, trained, {"schedule": wild}, patterns(64))
    assert caught.value.where == "step 1 of 2"
    assert "lower `lr`" in caught.value.then


def test_statistics_of_batch_norms_stay_or_go_as_asked(tmp_path, trained):
    made = [pruned(tmp_path, trained, {"schedule": {"steps": 2, "batch_norm": anew}}, patterns(64)) for anew in (0, 1)]
    told = [{row["batch_norms"] for row in item.manifest.record["results"]["schedule"]} for item in made]
    assert told == [{"kept"}, {"measured anew"}]
    kept = made[0]
    before, after = dict(models.load(trained).named_buffers()), dict(models.load(kept).named_buffers())
    whole = [name for name, value in before.items() if name.endswith("_var") and value.shape == after[name].shape]
    assert whole
    assert all(before[name].equal(after[name]) for name in whole)


def test_pruning_a_sparse_model_says_that_it_is_sparse_no_longer(tmp_path, trained):
    sparse = run_stage(tmp_path, sparsify, {}, model=trained)
    events = []
    made = run_stage(tmp_path, prune, {"macs": 0.6, "round_to": 1}, model=sparse, collect=events)
    assert zeros.read(made) is None
    assert any(text.startswith("the model is sparse no longer: ") for text in texts(events))


RECIPE = """
name: gradual
model: {{factory: nets.py:cnn, inputs: {{image: {{shape: [batch, 1, 16, 16]}}}}}}
data: {{train: {{random: {{rows: 8}}}}}}
stages:
  - prune: {{macs: 0.5, data: train{more}}}
  - export:
"""


def test_only_pruning_at_once_leaves_something_to_recover(tmp_path):
    (tmp_path / "nets.py").write_text((HERE / "nets.py").read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(more=", schedule: {steps: 3}"))
    assert load(recipe).steps
    recipe.write_text(RECIPE.format(more=", importance: taylor"))
    with pytest.raises(RecipeError, match="'prune' leaves the model unrecovered"):
        load(recipe)
    recipe.write_text(RECIPE.format(more=", schedule: {steps: 1}"))
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    assert [problem.message for problem in caught.value.problems] == ["'steps' should be greater than 1"]
    assert recover.pays == prune.owes == {"unrecovered"}


def test_settings_are_checked():
    for wrong, says in (
        ({"macs": 0.5, "schedule": {"steps": 3}}, "schedule needs data"),
        (
            {"depth": 0.5, "data": "train", "schedule": {}},
            "depth leaves blocks out at once: put it in a step of its own",
        ),
        ({"drop": ["a"], "data": "train", "schedule": {}}, "drop leaves blocks out at once"),
        ({"macs": 0.5, "data": "train", "schedule": {}, "sensitivity": 8}, "measure it in a step without `schedule`"),
        ({"macs": 0.5, "data": "train", "schedule": {"steps": 1}}, "greater than 1"),
        ({"macs": 0.5, "data": "train", "schedule": {"step": 3}}, "Extra inputs"),
        ({"macs": 0.5, "data": "train", "schedule": {"patience": 2}}, "`patience` is about evaluations"),
    ):
        with pytest.raises(ValidationError, match=says):
            PruneConfig.model_validate(wrong)
