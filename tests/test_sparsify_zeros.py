"""Zeros stay zero: through training, folding and rounding, in one process and in several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import nets
from crewing import together
from modelpack.numerics import sparsity, training, zeros
from modelpack.numerics.sparsity import layers
from modelpack.stages.distill import distill
from modelpack.stages.model import model
from modelpack.stages.qat import qat
from modelpack.stages.recover import recover
from modelpack.tensors import TensorSpec
from support import Rows, run_stage
from test_models import imported
from test_sparsify import run, texts, tokens, weights

torch.set_num_threads(1)


def patterns(count=64):
    from test_distill import patterns as made

    return made(count)


def test_zeros_stay_zero_through_training_and_say_so(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    sparse = run(tmp_path, source, {"pattern": "2:4"})
    steps = {"model": source}
    data = {"train": patterns()}
    for stage, wanted in ((recover, {"epochs": 1}), (distill, {"epochs": 1, "lr": 1e-2, "weight_decay": 0.1})):
        events = []
        made = run_stage(
            tmp_path, stage, {"data": "train", **wanted}, model=sparse, steps=steps, data=data, collect=events
        )
        told = zeros.read(made)
        assert told == zeros.read(sparse)
        assert zeros.lost(told, sparse, made.path) == []
        assert f"all {told.zeros} zeros of the sparse model are still zero" in texts(events)
        moved = weights(made)["block1.expand.weight"] != weights(sparse)["block1.expand.weight"]
        assert float(moved.float().mean()) > 0.4


FOLDED = """
from torch import nn

def net():
    made = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.uniform_(made[1].weight, -1.5, 1.5)
    return made
"""


def test_zeros_stay_zero_when_norms_are_folded_and_weights_rounded(tmp_path):
    (tmp_path / "own.py").write_text(FOLDED)
    settings = {"factory": "own.py:net", "inputs": {"x": {"shape": ["batch", 8]}}}
    source = run_stage(tmp_path, model, settings, base=tmp_path)
    sparse = run(tmp_path, source, {"ratio": 0.5})
    rows = Rows({"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}, 16)
    made = run_stage(
        tmp_path, qat, {"data": "train", "epochs": 1}, model=sparse, steps={"model": source}, data={"train": rows}
    )
    told = zeros.read(made)
    assert told == zeros.read(sparse)
    before, after = weights(sparse), weights(made)
    for name, count in told.layers.items():
        assert bool((after[name][before[name] == 0] == 0).all())
        assert count == before[name].numel() // 2
        assert not torch.equal(before[name], after[name])


def test_without_the_constraint_training_fills_zeros_and_the_model_is_called_dense(tmp_path, monkeypatch):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    sparse = run(tmp_path, source, {})
    monkeypatch.setattr(training, "zeros_kept", lambda *_: None)
    events = []
    made = run_stage(
        tmp_path, recover, {"data": "train", "epochs": 1}, model=sparse, steps={"model": source},
        data={"train": patterns()}, collect=events,
    )  # fmt: skip
    assert zeros.read(made) is None
    assert any(text.startswith("the model is sparse no longer: block1.expand.weight, ") for text in texts(events))


def trained_together():
    """Train a sparse module as one of a crew; gives how many of its zeros are lost, and the share of weights that moved."""
    from dataclasses import replace

    from modelpack.numerics import distillation

    torch.manual_seed(0)
    module = nets.encoder().eval()
    found = layers.find(module, (), ("classifier",), None, seen=False)
    told, _ = sparsity.sparsify(module, found, sparsity.Way("magnitude", 0.5))
    before = {name: module.get_parameter(name).detach().clone() for name in told.layers}
    teacher = nets.encoder().eval()
    specs = {name: TensorSpec.model_validate(spec) for name, spec in nets.TOKENS.items()}
    data = training.Rows(tokens(16).batches, specs, None)
    device = torch.device("cpu")
    wish = distillation.Wish(alpha=1.0)
    objective = distillation.imitation(teacher, module, data, None, wish=wish, device=device)
    plan = replace(training.Schedule(epochs=1, rate=1e-2), parallel="fsdp")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(zeros, "read", return_value=told):
        kept = training.zeros_kept(module, None)
        lesson = training.Lesson(objective, data, None, plan, device, 0, constraint=kept)
        training.train(module, lesson, Path(folder))
    after = {name: module.get_parameter(name).detach() for name in told.layers}
    lost = sum(int(after[name][before[name] == 0].count_nonzero()) for name in after)
    moved = [float((after[name] != before[name]).float().mean()) for name in after]
    return [lost, min(moved)]


def test_zeros_stay_zero_when_each_process_holds_a_part():
    for lost, moved in together("test_sparsify_zeros", "trained_together"):
        assert lost == 0
        assert moved > 0.4
