"""The training loop: what its settings promise, and that a killed run continues as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nets
from modelpack.errors import StageError
from modelpack.numerics.training import checkpoint, tensors
from modelpack.numerics.training.batches import Rows as Picked
from modelpack.stages.distill import distill
from modelpack.tensors import TensorSpec
from support import DEVICES, Rows, run_stage
from test_distill import history, patterns, run, student_and_teacher

torch.set_num_threads(1)
HERE = Path(__file__).parent

CHILD = """
import sys, os, signal
sys.path.insert(0, {here!r})
from pathlib import Path
import test_training
from modelpack.artifact import Artifact
models = Artifact.load(Path({student!r})), Artifact.load(Path({teacher!r}))
for name, at in {moments!r}.items():
    child = os.fork()  # what takes long is to import torch
    if child == 0:
        test_training.killed(Path({root!r}) / name, *models, {settings!r}, at, {device!r})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""
MOMENTS = {"midst": (3, 2), "end": (2, 0)}
SETTINGS = {
    "data": "train",
    "eval_data": "val",
    "epochs": 4,
    "lr": 5e-3,
    "precision": "float16",
    "accumulate": 2,
    "ema": 0.9,
    "patience": 3,
}


def lessons():
    return {"train": patterns(), "val": patterns(64, 1)}


def killed(root, student, teacher, settings, at, device):
    """Train, and be killed at a step: (epoch, steps done of it)."""
    checkpoint.PAUSE, checkpoint.COST = 0.0, 0

    class Killer(list):
        def append(self, event):
            if getattr(event, "label", "").startswith(f"epoch {at[0]} ") and event.done == at[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    run_stage(
        root,
        distill,
        settings,
        model=student,
        steps={"model": teacher},
        data=lessons(),
        collect=Killer(),
        device=device,
    )


def timeless(artifact):
    """Give the history without what a clock says."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history(artifact)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_killed_run_continues_with_the_same_result(tmp_path, device):
    student, teacher = student_and_teacher(tmp_path)
    given = {"model": student, "steps": {"model": teacher}, "data": lessons(), "device": device}
    straight = run_stage(tmp_path / "straight", distill, SETTINGS, **given)
    code = CHILD.format(
        here=str(HERE),
        root=str(tmp_path),
        student=str(student.path),
        teacher=str(teacher.path),
        settings=SETTINGS,
        moments=MOMENTS,
        device=device,
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    for name, (epoch, step) in MOMENTS.items():
        left = list((tmp_path / name / "store" / "scratch").glob("*/epoch-*"))
        steps = step if device == "cpu" else 0  # a GPU is asked only now and then, and these epochs are short
        assert [path.name for path in left] == [f"epoch-{epoch - 1:05d}+{steps:07d}"]
        events = []
        resumed = run_stage(tmp_path / name, distill, SETTINGS, collect=events, **given)
        assert f"epoch {epoch - 1} of 4" not in {getattr(event, "label", "") for event in events}
        assert any("of an interrupted try" in getattr(event, "text", "") for event in events)
        assert resumed.id == straight.id
        assert timeless(resumed) == timeless(straight)


def test_a_damaged_checkpoint_is_named(tmp_path):
    module = nets.cnn()
    kept = checkpoint.Checkpoints(tmp_path)
    parts = {"student": tensors.copied(module), "best": tensors.copied(module), "training": {}}
    kept.write(checkpoint.Progress(epoch=1), parts)
    assert kept.read()[0].epoch == 1
    (tmp_path / "epoch-00001+0000000" / "student.safetensors").write_bytes(b"half")
    with pytest.raises(StageError, match="epoch-00001"):
        kept.read()


def test_a_student_that_explodes_is_reported(tmp_path):
    student, teacher = student_and_teacher(tmp_path)
    broken = patterns()
    broken.columns["image"][5] = np.nan
    with pytest.raises(StageError, match=r"loss is nan in epoch 1"):
        run(tmp_path, student, teacher, {"data": "train", "epochs": 1}, train=broken)


def test_rows_are_shuffled_alike_whether_they_fit_in_memory_or_not():
    source = Rows({"x": np.arange(50, dtype=np.float32)[:, None]}, 8)
    specs = {"x": TensorSpec(shape=("batch", 1))}
    whole = Picked(source.batches, specs, None)
    one = [batch["x"].ravel().tolist() for batch in whole.shuffled(3)]
    assert one == [batch["x"].ravel().tolist() for batch in whole.shuffled(3)]  # the second pass comes from memory
    assert sorted(value for batch in one for value in batch) == list(range(50))
    assert one != [batch["x"].ravel().tolist() for batch in whole.shuffled(4)]
    windows = Picked(source.batches, specs, None, window=100)
    assert sorted(float(value) for batch in windows.shuffled(3) for value in batch["x"].ravel()) == list(range(50))
    assert not windows.fits
    assert whole.fits
