"""An interrupted training ends with the weights of an undisturbed one, whatever its settings and wherever it stopped."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from modelpack.numerics.calling import call
from modelpack.numerics.training import Schedule, checkpoint, train
from modelpack.numerics.training.batches import TRUTH
from support import DEVICES
from test_training_settings import Squares, lesson, numbers, same

torch.set_num_threads(1)

ASKED = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 4),
        "rate": st.just(0.02),
        "curve": st.sampled_from(["cosine", "one_cycle", "linear", "constant"]),
        "optimizer": st.sampled_from(["adamw", "sgd"]),
        "accumulate": st.integers(1, 4),
        "layer_decay": st.sampled_from([1.0, 0.7]),
        "average": st.sampled_from([0.0, 0.9]),
        "patience": st.sampled_from([None, 1]),
        "every": st.integers(1, 2),
        "precision": st.sampled_from(["float32", "bfloat16", "float16"]),
        "recompute": st.booleans(),
    }
)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))

    def forward(self, x):
        return x + self.inner(x)


class Interrupted(Squares):
    """Learns through a projection of its own, and stops at a step."""

    def __init__(self, at):
        torch.manual_seed(1)
        super().__init__(nn.Linear(6, 2))
        self.left = at

    def losses(self, student, inputs, beside):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        outputs = call(student, inputs)["output"]
        return {"loss": (self.learned(outputs) - beside[TRUTH]).square().mean(), "size": outputs.square().mean()}

    def judge(self, student, inputs, beside):
        truth = beside[TRUTH]
        return {"score": (-float((self.learned(call(student, inputs)["output"]) - truth).square().sum()), len(truth))}


def model():
    torch.manual_seed(0)
    return nn.Sequential(Part(), Part())


def learn(scratch, asked, device, at=0, judged=True):
    student, objective = model().to(device), Interrupted(at)
    objective.learned.to(device)
    of = lesson(Schedule(**asked), held_out=numbers(16) if judged else None, objective=objective)
    return student, train(student, replace(of, device=torch.device(device)), scratch)


def timeless(history):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.parametrize("device", DEVICES)
@given(ASKED, st.integers(1, 24), st.booleans())
@example({"epochs": 1, "rate": 0.02, "optimizer": "sgd", "precision": "float16"}, 2, False)  # overflows at first
@settings(max_examples=12, deadline=None)
def test_where_a_training_stops_changes_nothing(device, asked, at, judged):
    if not judged:
        asked = {**asked, "patience": None}
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "PAUSE", 0.0)
        patch.setattr(checkpoint, "COST", 0)
        patch.setattr(checkpoint, "sync", lambda _path: None)  # nothing here survives a power cut
        straight, whole = learn(Path(root) / "straight", asked, device, judged=judged)
        killed = Path(root) / "killed"
        try:
            again, resumed = learn(killed, asked, device, at, judged)
        except KeyboardInterrupt:
            (killed / "draft").mkdir(parents=True, exist_ok=True)
            (killed / "draft" / "progress.json").write_text("hal")
            again, resumed = learn(killed, asked, device, judged=judged)
        assert same(straight, again)
        assert timeless(whole.history) == timeless(resumed.history)
        assert (whole.best_epoch, whole.score, whole.figures) == (resumed.best_epoch, resumed.score, resumed.figures)
        assert len(list(killed.glob("epoch-*"))) == 1


def test_a_checkpoint_is_written_when_losing_the_work_would_cost_more(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = checkpoint.Checkpoints(tmp_path)
    now[0] += checkpoint.PAUSE - 0.1
    assert not kept.due()
    now[0] += 0.2
    assert kept.due()

    def slowly(tensors, path):
        now[0] += 1.0
        path.write_bytes(b"")

    monkeypatch.setattr(checkpoint.tensorfile, "write", slowly)
    kept.write(checkpoint.Progress(), {"student": {}})
    now[0] += checkpoint.COST - 0.1
    assert not kept.due()
    now[0] += 0.2
    assert kept.due()
