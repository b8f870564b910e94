"""Checkpoints that users bring: read in every form, never unpickled, and refused by name where they do not fit."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import nets
from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.stages.model import model
from support import run_stage
from test_models import HERE, feed_for, imported, outputs, same

torch.set_num_threads(1)


def weights_of(seed=3):
    torch.manual_seed(seed)
    return nets.cnn().state_dict()


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped", "parallel"])
def test_checkpoints_of_every_form_are_read(tmp_path, form):
    state = weights_of()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pt":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    events = []
    settings = {"factory": "nets.py:cnn", "inputs": nets.IMAGE, "weights": str(path)}
    artifact = run_stage(tmp_path, model, settings, base=HERE, collect=events)
    expected = nets.cnn()
    expected.load_state_dict(state)
    feed = feed_for(artifact)
    assert same(outputs(models.load(artifact), feed), outputs(expected.eval(), feed))
    notes = " ".join(getattr(event, "text", "") for event in events)
    assert ("'module.'" in notes) == (form == "parallel")
    assert ("took 'state_dict'" in notes and "'optimizer'" in notes) == (form == "wrapped")


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path(sys.prefix) / "trapped",))


def test_a_checkpoint_that_needs_unpickling_is_refused_unread(tmp_path):
    torch.save({"state_dict": weights_of(), "args": Trap()}, tmp_path / "w.pt")
    with pytest.raises(StageError, match=r"only be read by unpickling.*it holds .*, which is code") as caught:
        imported(tmp_path, "cnn", nets.IMAGE, weights=str(tmp_path / "w.pt"))
    assert "safetensors.torch.save_file" in caught.value.then
    assert not (Path(sys.prefix) / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2])])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.bin"])
def test_damaged_weights_are_refused_with_their_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=name):
        imported(tmp_path, "cnn", nets.IMAGE, weights=str(tmp_path / name))


def test_mismatched_weights_are_listed_not_dumped(tmp_path):
    state = weights_of()
    lines = [name for name in state if name.startswith("block")]
    for name in lines:
        state[f"old.{name}"] = state.pop(name)
    state["head.weight"] = torch.zeros(7, 32)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(StageError) as caught:
        imported(tmp_path, "cnn", nets.IMAGE, weights=str(tmp_path / "w.safetensors"))
    text = caught.value.what
    missing = [name for name in lines if not name.endswith("num_batches_tracked")]
    assert f"{len(missing)} missing from the file" in text
    assert f"{len(lines)} unknown to the model" in text
    assert "head.weight: file [7, 32], model [10, 32]" in text
    assert text.count("\n") < 30
