"""Recovery: what pruning took is given back from unlabelled data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import nets
from modelpack.errors import StageError
from modelpack.numerics import models, training
from modelpack.numerics.training import statistics
from modelpack.stages.prune import prune
from modelpack.stages.recover import RecoverConfig, recover
from modelpack.tensors import TensorSpec
from support import DEVICES, Rows, run_stage
from test_distill import accuracy, history, patterns, run, student_and_teacher
from test_models import imported, outputs

torch.set_num_threads(1)


def unlabelled(count=192, seed=0):
    return Rows({"image": patterns(count, seed).columns["image"]})


def recovered(root, pruned, original, settings, *, collect=None, **data):
    data = {"train": unlabelled(), **data}
    wanted = {"data": "train", **settings}
    return run_stage(root, recover, wanted, model=pruned, steps={"model": original}, data=data, collect=collect)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    _, net = student_and_teacher(root)
    return run(root, net, net, {"data": "train", "epochs": 6, "alpha": 0.0, "lr": 5e-3}, train=patterns())


def test_a_pruned_net_gets_its_accuracy_back_without_labels(tmp_path, trained):
    held_out = patterns(300, seed=1)
    pruned = run_stage(tmp_path, prune, {"macs": 0.4}, model=trained)
    healed = recovered(tmp_path / "1", pruned, trained, {"epochs": 10, "lr": 3e-3})
    again = recovered(tmp_path / "2", pruned, trained, {"epochs": 10, "lr": 3e-3})
    assert healed.id == again.id
    before, broken, after = (accuracy(item, held_out) for item in (trained, pruned, healed))
    assert before > 0.9
    assert broken < before - 0.15
    assert after > before - 0.1
    assert models.load(healed).stem.out_channels == models.load(pruned).stem.out_channels < 16


@pytest.mark.parametrize("device", DEVICES)
def test_batch_norm_statistics_alone_are_measured_exactly(tmp_path, trained, device):
    pruned = run_stage(tmp_path, prune, {"macs": 0.5}, model=trained)
    events = []
    healed = run_stage(
        tmp_path,
        recover,
        {"data": "train", "epochs": 0},
        model=pruned,
        steps={"model": trained},
        data={"train": unlabelled(192)},
        collect=events,
        device=device,
    )
    before, after = models.load(pruned), models.load(healed)
    batches = [torch.from_numpy(batch["image"]) for batch in unlabelled(192).batches()]
    with torch.no_grad():
        means = torch.stack([after.stem(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(after.norm.running_mean, means, atol=1e-5 if device == "cpu" else 1e-3)  # TF32
    assert after.norm.momentum == before.norm.momentum
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    count = sum(isinstance(layer, nn.BatchNorm2d) for layer in after.modules())
    assert any(f"statistics of {count} batch norms" in getattr(event, "text", "") for event in events)


@pytest.mark.parametrize(("rows", "counted"), [(9, [8]), (17, [8, 8]), (10, [8, 2])])
def test_a_last_batch_of_one_row_is_left_out_of_the_statistics(rows, counted):
    """One row has no variance: torch refuses it where a norm sees one value per channel."""
    student = nn.Sequential(nn.Identity(), nn.BatchNorm1d(4))
    seen = []
    student[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(len(output)))
    columns = {"input": np.random.default_rng(0).random((rows, 4), np.float32)}
    inputs = {"input": TensorSpec(shape=("batch", 4))}
    data = training.Rows(Rows(columns, 8).batches, inputs, None)
    found = statistics.reestimate(student, training.reader(data, torch.device("cpu"))())
    assert found == 1
    assert seen == counted


def test_an_encoder_without_batch_norms_is_recovered_by_imitation(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    pruned = run_stage(tmp_path, prune, {"macs": 0.5}, model=source)
    generator = np.random.default_rng(0)
    columns = {"input_ids": generator.integers(0, 50, (128, 10)), "attention_mask": np.ones((128, 10), np.int64)}
    events = []
    healed = run_stage(
        tmp_path,
        recover,
        {"data": "text", "eval_data": "text", "epochs": 3, "lr": 3e-3},
        model=pruned,
        steps={"model": source},
        data={"text": Rows(columns, 16)},
        collect=events,
    )
    lines = history(healed)
    assert lines[-1]["score"] > 0.5 * lines[0]["score"]  # scores are negative distances: at most half is left
    assert any("no batch norms" in getattr(event, "text", "") for event in events)
    asked = {"data": "text", "epochs": 1, "batch_norm": True}
    told = run_stage(tmp_path, recover, asked, model=pruned, steps={"model": source}, data={"text": Rows(columns, 16)})
    assert any("`batch_norm: true` does nothing" in text for text in told.manifest.record["warnings"])
    feed = {name: torch.from_numpy(column[:2]) for name, column in columns.items()}
    assert outputs(models.load(healed), feed)["logits"].shape == (2, 5)


def test_invented_rows_are_called_so(tmp_path, trained):
    made = run_stage(
        tmp_path,
        recover,
        {"data": "train", "epochs": 0},
        model=trained,
        steps={"model": trained},
        data={"train": unlabelled(64)},
        synthetic=frozenset({"train"}),
    )
    assert any("invented rows" in text for text in made.manifest.record["warnings"])


def norms(artifact):
    """Give the statistics of all batch norms."""
    return {name: value for name, value in models.load(artifact).named_buffers() if name.endswith(("_mean", "_var"))}


def same_statistics(one, other):
    kept = norms(other)
    return all(torch.equal(value, kept[name]) for name, value in norms(one).items())


def test_rows_unlike_those_of_the_statistics_leave_them_alone(tmp_path, trained):
    """A single pattern says nothing about the ten that the statistics are of."""
    pruned = run_stage(tmp_path, prune, {"macs": 0.9, "data": "train"}, model=trained, data={"train": unlabelled()})
    columns = patterns(192).columns
    alike = Rows({"image": columns["image"][columns["label"] == 3]}, 8)
    held_out = patterns(300, seed=1)
    events = []
    wanted = {"epochs": 2, "lr": 1e-4}
    auto = recovered(tmp_path / "auto", pruned, trained, wanted, train=alike)
    kept = recovered(tmp_path / "kept", pruned, trained, wanted | {"batch_norm": False}, train=alike, collect=events)
    anew = recovered(tmp_path / "anew", pruned, trained, wanted | {"batch_norm": True}, train=alike)
    assert same_statistics(auto, pruned)
    assert any(getattr(event, "text", "").startswith("kept the statistics of 10") for event in events)
    told, plain, new = (made.manifest.record["results"]["batch_norms"] for made in (auto, kept, anew))
    assert told["error_by_old"] < told["error_by_new"]
    assert {**plain, "error_by_old": told["error_by_old"], "error_by_new": told["error_by_new"]} == told
    assert auto.manifest.record["results"]["came_to"] == {"batch_norm": "kept"}
    assert (told["batch_norms"], told["statistics"], new["statistics"]) == (10, "kept", "measured anew")
    after, before = models.load(auto), models.load(pruned)
    assert not all(torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    for name, value in models.load(kept).state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
    assert not same_statistics(anew, pruned)
    assert accuracy(anew, held_out) < accuracy(auto, held_out)


def test_a_teacher_that_gives_something_else_is_told(tmp_path):
    """Before batch norms are measured against it."""
    teacher = imported(tmp_path, "cnn", nets.IMAGE)
    student = imported(tmp_path, "cnn", nets.IMAGE, arguments={"classes": 7})
    with pytest.raises(StageError, match=r"differ in the output 'output': the teacher gives \[16, 10\]"):
        recovered(tmp_path, student, teacher, {}, train=unlabelled(16))


class Counting(nn.Module):
    """A batch norm, and a buffer of another kind that grows with the rows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x[:, 0].detach()])
        return {"values": self.norm(x), "classes": x.argmax(1)}


@pytest.mark.parametrize("wanted", [{"epochs": 0}, {"epochs": 1, "batch_norm": False}])
def test_batches_of_single_rows_are_no_riddle(tmp_path, wanted):
    """A norm that sees one value a channel learns nothing from them, but can keep what it knows."""
    source = imported(tmp_path, "vectors", {"x": {"shape": ["batch", 8]}})
    rows = Rows({"x": np.random.default_rng(0).random((6, 8), np.float32)}, 1)
    if "batch_norm" in wanted:
        recovered(tmp_path, source, source, wanted, train=rows)
        wanted = {"batch_norm": "auto"}
    with pytest.raises(StageError, match="more than 1 value per channel") as caught:
        recovered(tmp_path / "auto", source, source, wanted, train=rows)
    assert "let the data give more rows at once" in caught.value.then
    assert "`batch_norm: false`" in caught.value.then


def test_what_else_is_wrong_with_a_single_row_keeps_its_own_advice():
    with pytest.raises(StageError) as caught, statistics.explained(1):
        raise StageError("the memory is too small", then="take another device")
    assert caught.value.then == "take another device"


@pytest.mark.parametrize("alike", [True, False])
def test_statistics_are_kept_or_measured_by_what_the_teacher_gives(alike):
    columns = {"x": np.random.default_rng(0).normal(3, 2, (32, 4)).astype(np.float32)}
    data = training.Rows(Rows(columns, 8).batches, {"x": TensorSpec(shape=("batch", 4))}, None)
    student, teacher = Counting().eval(), Counting().eval()
    if not alike:
        statistics.reestimate(teacher, training.reader(data, torch.device("cpu"))())
    settled = training.settle(student, teacher, training.reader(data, torch.device("cpu")))
    assert settled.still is alike
    assert settled.word == ("kept" if alike else "measured anew")
    assert (settled.errors[0] < settled.errors[1]) is alike
    for name, value in teacher.norm.named_buffers():
        assert torch.equal(value, student.norm.get_buffer(name))
    assert len(student.seen) > 32


def test_settings_are_checked():
    for wrong in ({}, {"data": "a", "epochs": -1}, {"data": "a", "lr": 0}, {"data": "a", "labels": "x"}):
        with pytest.raises(ValidationError):
            RecoverConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match="heal nothing"):
        RecoverConfig(data="a", epochs=0, batch_norm=False)
    assert recover.pays == {"unrecovered"}
