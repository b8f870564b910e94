"""Whole commands on a GPU: what a user types, from the recipe to the figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
RECIPE = """\
name: whole
model: {factory: nets.py:cnn, inputs: {image: {shape: [batch, 1, 16, 16]}}}
data:
  train: {npz: {path: train.npz, batch: 32}}
stages:
  - distill: {data: train, epochs: 4, alpha: 0.0, lr: 5e-3}
    id: original
  - prune: {macs: 0.6, importance: taylor, data: train, loss: task}
  - recover: {teacher: original, data: train, epochs: 2}
  - export: {data: train}
  - evaluate: {data: train, metrics: [accuracy], target: label, against: original}
  - quantize: {method: float16, data: train, allow_slower: true}
    from: export
  - bench: {against: export, batch: [1, 8], rounds: 10, seconds: 1}
"""


@pytest.fixture
def place(tmp_path):
    """A recipe and what it names."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 10, 320)
    image = generator.standard_normal((10, 1, 16, 16))[label] + 0.5 * generator.standard_normal((320, 1, 16, 16))
    np.savez(tmp_path / "train.npz", image=image.astype(np.float32), label=label)
    shutil.copy(HERE / "nets.py", tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def modelpack(place, *arguments, store="store"):
    """Type a command; gives its exit code, and the JSON lines it printed."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "modelpack", *arguments, "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "MODELPACK_STORE": str(place / store)},
    )
    assert done.returncode in (0, 4), done.stdout[-2000:] + done.stderr
    return done.returncode, done.stdout


def artifacts(lines):
    """Name the artifact of each step."""
    events = [json.loads(line) for line in lines.splitlines()]
    return {event["step"]: event["artifact"] for event in events if "artifact" in event and "step" in event}


@pytest.mark.cuda
def test_a_recipe_runs_on_a_gpu_from_end_to_end_and_auto_finds_it(place):
    code, named = modelpack(place, "compress", "recipe.yaml", "--device", "cuda")
    assert code == 0
    _, found = modelpack(place, "compress", "recipe.yaml", "--device", "auto", store="other")
    one, two = artifacts(named), artifacts(found)
    assert {"original", "prune", "recover", "export", "quantize", "bench"} <= set(one)
    measured = {"bench", "evaluate"}
    assert {step: key for step, key in one.items() if step not in measured} == {
        step: key for step, key in two.items() if step not in measured
    }
    for text in (named, found):
        assert '"cuda:0"' in text
    _, again = modelpack(place, "compress", "recipe.yaml", "--device", "cuda")
    assert artifacts(again) == one
    _, figures = modelpack(place, "show", one["bench"])
    assert "cuda:0" in figures


@pytest.mark.cuda
def test_more_processes_than_gpus_are_refused_before_anything_runs(place):
    code, told = modelpack(place, "compress", "recipe.yaml", "--device", "cuda", "--nproc", "32")
    assert code == 4
    assert "32 processes from cuda:0 on need a CUDA device each" in told


@pytest.mark.cuda
def test_doctor_finds_the_gpu(place):
    _, told = modelpack(place, "doctor")
    found = {item["name"]: item for item in json.loads(told)}
    assert found["CUDA"]["ok"]
    assert "usable" in found["CUDA"]["found"]
    assert "CUDAExecutionProvider" in found["onnxruntime providers"]["found"]
