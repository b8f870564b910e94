"""What a training says when it cannot go on, and what it leaves behind then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modelpack.errors import StageError
from modelpack.numerics.training import Schedule, checkpoint, memory, remarks, train
from modelpack.numerics.training.sharing import Share
from test_training_settings import Squares, lesson, numbers, perceptron, same, trained

torch.set_num_threads(1)


def test_a_training_that_was_killed_at_its_end_reads_nothing_and_says_nothing_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    settings = Schedule(2, 0.01)
    first, _ = trained(tmp_path, settings)
    again = lesson(settings)
    second = perceptron(seed=1)
    found = train(second, again, tmp_path)
    assert same(first, second)
    assert remarks(found, again) == ["continued after epoch 2 of an interrupted try"]


def test_a_loss_that_is_no_number_is_told_with_the_weights_that_are_kept(tmp_path, monkeypatch):
    @dataclass
    class Spoilt(Squares):
        steps: int = 0

        def losses(self, student, inputs, beside):
            found = super().losses(student, inputs, beside)
            self.steps += student.training
            return {"loss": found["loss"] * (math.nan if self.steps == 14 else 1)}

    with pytest.raises(StageError, match="loss is nan in epoch 3, step 4") as caught:
        trained(tmp_path, Schedule(4, 0.01), objective=Spoilt())
    kept = tmp_path / "best-00002.safetensors"
    assert str(kept) in str(caught.value)
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    with pytest.raises(StageError, match="epoch 1, step 4") as caught:
        trained(tmp_path / "early", Schedule(4, 0.01), objective=Spoilt(steps=10))
    last = tmp_path / "early" / "epoch-00000+0000003" / "student.safetensors"
    assert str(last) in str(caught.value)
    assert last.exists()
    good, _ = trained(tmp_path / "good", Schedule(4, 0.01))
    assert kept.exists()
    assert set(load_file(kept)) == set(good.state_dict())


def test_weights_that_are_no_numbers_are_told(tmp_path):
    class Steep(Squares):
        def losses(self, student, inputs, beside):
            zero = (student[2].bias * 0).sum()
            return {"loss": super().losses(student, inputs, beside)["loss"] + zero.abs().sqrt()}

    with pytest.raises(StageError, match="no finite numbers any longer after epoch 1"):
        trained(tmp_path, Schedule(1, 0.01, clip=0), objective=Steep(), data=numbers(8, 8))


@pytest.mark.parametrize(("room", "fits"), [(5, 4), (2, 2), (0, 0)])
def test_batches_too_large_for_the_device_are_halved_until_they_fit(tmp_path, room, fits):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()

        def forward(self, x):
            if len(x) > room and self.training and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(x)

    says = f"{fits} fit" if fits else "too small to train on one row"
    with pytest.raises(StageError, match=says) as caught:
        trained(tmp_path, Schedule(1, 0.01), Narrow(), data=numbers(32, 16))
    assert (f"`batch: {fits}` of the data and `accumulate: {16 // fits}`" if fits else "another device") in str(
        caught.value
    )


def test_the_batch_of_a_crew_is_named_whole_when_a_part_does_not_fit():
    class Never:
        def backward(self, batch, share, total):
            raise AssertionError("one process of a crew cannot try alone")

    columns = {"x": np.ones((4, 6), np.float32)}
    with (
        pytest.raises(StageError, match=r"batches of 17 rows; 8 fit\n  set `batch: 8` .* and `accumulate: 3`"),
        memory.explained(Never(), columns, Share(4, 17, 4)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_memory_for_the_optimizer_is_told(tmp_path, monkeypatch):
    def full(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(StageError, match="what the optimizer remembers") as caught:
        trained(tmp_path, Schedule(1, 0.01))
    assert "`optimizer: sgd`" in str(caught.value)


def test_nothing_to_train_is_told(tmp_path):
    frozen = perceptron().requires_grad_(requires_grad=False)
    with pytest.raises(StageError, match="every parameter of the model is frozen"):
        trained(tmp_path, Schedule(1, 0.01), frozen)
    with pytest.raises(StageError, match="hold no rows"):
        trained(tmp_path, Schedule(1, 0.01), data=numbers(0))
    module, _ = trained(tmp_path / "one", Schedule(1, 0.01), data=numbers(1))
    assert not same(module, perceptron())
