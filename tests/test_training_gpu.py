"""Training on a GPU: what a processor learns is learnt there, twice the same, in any precision and in bounded memory."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import randomness
from modelpack.numerics.training import Schedule, train
from modelpack.numerics.training.recompute import recomputed
from modelpack.stages.distill import distill
from modelpack.stages.model import model
from support import DEVICES, Rows, run_stage
from test_distill import accuracy, history, patterns, student_and_teacher
from test_training_settings import Squares, lesson, numbers, perceptron, same

torch.set_num_threads(1)
HERE = Path(__file__).parent
GPU = torch.device("cuda:0")


def learn(root, settings, device, module=None, **of):
    """Train on a device; the student comes back to the processor."""
    module = (perceptron() if module is None else module).to(device)
    found = train(module, replace(lesson(settings, **of), device=torch.device(device)), root)
    return module.cpu(), found


@pytest.mark.cuda
@pytest.mark.parametrize(("precision", "far"), [("float32", 1e-3), ("bfloat16", 0.05), ("float16", 0.02)])
def test_a_gpu_learns_what_the_processor_learns(tmp_path, precision, far):
    settings = Schedule(6, 0.03, average=0.9, accumulate=2, precision="float32")
    held_out = numbers(16)
    here, told = learn(tmp_path / "1", settings, "cpu", held_out=held_out)
    there, seen = learn(tmp_path / "2", replace(settings, precision=precision), GPU, held_out=held_out)
    assert same(here, there, atol=far)
    assert not same(here, perceptron(), atol=2 * far)
    for mine, its in zip(told.history, seen.history, strict=True):
        assert mine["score"] == pytest.approx(its["score"], abs=far)


class Faint(Squares):
    """A loss whose gradients lie below what float16 can hold."""

    def losses(self, student, inputs, beside):
        return {"loss": super().losses(student, inputs, beside)["loss"] * 1e-6}


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_too_small_for_float16_are_not_lost(tmp_path, device):
    settings = Schedule(6, 0.03, precision="float32", clip=0)
    wanted, _ = learn(tmp_path / "1", settings, "cpu", objective=Faint())
    found, _ = learn(tmp_path / "2", replace(settings, precision="float16"), device, objective=Faint())
    assert same(wanted, found, atol=0.05)
    assert not same(wanted, perceptron(), atol=0.1)


def rows_of(factory, count=48):
    generator = np.random.default_rng(0)
    if factory == "cnn":
        return {"image": generator.standard_normal((count, 1, 16, 16)).astype(np.float32)}
    if factory == "encoder":
        ids = generator.integers(0, 50, (count, 12))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if factory == "grouped":
        picture = generator.standard_normal((count, 4, 16, 16)).astype(np.float32)
        return {"picture": picture, "extra": generator.standard_normal((count, 3)).astype(np.float32)}
    return {"series": generator.standard_normal((count, 9, 6)).astype(np.float32)}


def drawn(root, factory, seed):
    """Import a net with weights of its own."""
    return run_stage(root, model, {"factory": f"nets.py:{factory}", "inputs": INPUTS[factory]}, base=HERE, seed=seed)


INPUTS = {"cnn": nets.IMAGE, "encoder": nets.TOKENS, "grouped": nets.PICTURE, "recurrent": nets.SERIES}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("factory", INPUTS)
def test_the_same_seed_gives_the_same_artifact_on_a_gpu(tmp_path, factory, precision):
    student, teacher = drawn(tmp_path, factory, 1), drawn(tmp_path, factory, 2)
    settings = {"data": "train", "epochs": 5, "lr": 5e-3, "precision": precision, "ema": 0.9}
    given = {"model": student, "steps": {"model": teacher}, "data": {"train": Rows(rows_of(factory), 16)}}
    one, two = (run_stage(tmp_path / name, distill, settings, device="cuda:0", **given) for name in ("1", "2"))
    assert one.id == two.id
    before, after = (load_file(item.file("weights.safetensors")) for item in (student, one))
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


class Crowded(nn.Module):
    """Adds thousands of numbers up to a few in its backward pass."""

    def __init__(self, enlarged):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head, self.enlarged = nn.Embedding(8, 6), nn.Linear(6, 2), enlarged

    def forward(self, x):
        chosen = (x[:, :, None] * torch.arange(1, 400, device=x.device)).long().remainder(8)
        found = self.words(chosen.flatten(1)).mean(1).view(-1, 1, 2, 3)
        return self.head(functional.interpolate(found, (64, 64), mode=self.enlarged)[:, :, ::32, ::22].flatten(1))


@pytest.mark.cuda
def test_sums_are_the_same_twice_where_there_is_a_way_and_else_it_is_told(tmp_path):
    settings = Schedule(4, 0.05, precision="float32")
    for mode, told in (("bilinear", ()), ("bicubic", ("upsample_bicubic2d_backward_out_cuda",))):
        twice = [
            learn(tmp_path / f"{mode}{turn}", settings, GPU, Crowded(mode), data=numbers(256, 64)) for turn in range(2)
        ]
        assert told or same(twice[0][0], twice[1][0])
        assert [found.unsteady for _, found in twice] == [told, told]
    assert not torch.are_deterministic_algorithms_enabled()


ENLARGING = """
from torch import nn
from torch.nn import functional
class Enlarging(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
    def forward(self, image):
        return self.second(functional.interpolate(self.first(image), scale_factor=2, mode="bicubic").mean((2, 3)))
"""


@pytest.mark.cuda
def test_a_step_that_another_run_may_not_repeat_warns(tmp_path):
    (tmp_path / "own.py").write_text(ENLARGING)
    net = run_stage(tmp_path, model, {"factory": "own.py:Enlarging", "inputs": nets.IMAGE}, base=tmp_path)
    given = {"model": net, "steps": {"model": net}, "data": {"train": patterns(64)}, "device": "cuda:0"}
    made = run_stage(tmp_path, distill, {"data": "train", "epochs": 1, "alpha": 0.0}, **given)
    (told,) = made.manifest.record["warnings"]
    assert "other bits: the GPU has no repeatable way for upsample_bicubic2d" in told


def test_operators_without_a_repeatable_way_are_collected_and_other_warnings_pass():
    found = set()
    with warnings.catch_warnings(record=True) as seen, randomness._noticed(found):
        warnings.simplefilter("always")
        warnings.warn("roll_cuda does not have a deterministic implementation, but you set it", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert found == {"roll_cuda"}
    assert [str(item.message) for item in seen] == ["something else"]


class Hungry(nn.Module):
    """Keeps 64 MiB for each row until its gradients are computed."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()
        self.register_buffer("wide", torch.ones(2**24), persistent=False)

    def forward(self, x):
        found = self.inner(x)
        return found + (found[:, :1] * self.wide).square().mean(1, keepdim=True)


@pytest.mark.cuda
def test_the_batch_that_fits_into_a_gpu_is_found_and_fits(tmp_path):
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved(GPU) + 2 * 2**30
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(GPU).total_memory, GPU)
    settings = Schedule(1, 0.01, precision="float32")
    try:
        with pytest.raises(StageError, match=r"too small to train on batches of 64 rows; \d+ fit") as caught:
            learn(tmp_path / "64", settings, GPU, Hungry(), data=numbers(64, 64))
        fits = int(re.search(r"(\d+) fit", caught.value.what)[1])
        assert 2 <= fits <= 32
        assert f"`batch: {fits}` of the data and `accumulate: {64 // fits}`" in caught.value.then
        learn(tmp_path / "fits", settings, GPU, Hungry(), data=numbers(64, fits))
        with pytest.raises(StageError, match=f"batches of {2 * fits} rows; {fits} fit"):
            learn(tmp_path / "twice", settings, GPU, Hungry(), data=numbers(64, 2 * fits))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
        torch.cuda.empty_cache()


@pytest.mark.cuda
def test_activations_computed_again_give_the_same_gradients_on_a_gpu():
    torch.manual_seed(0)
    module = nets.torch_encoder().to(GPU).train()
    x = torch.randn(4, 5, 16, device=GPU)
    found = []
    for again in (False, True):
        module.zero_grad()
        torch.cuda.manual_seed(7)  # for its dropout
        if again:
            with recomputed(module):
                module(x).square().sum().backward()
        else:
            module(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.cuda
def test_activations_computed_again_take_less_of_a_gpus_memory():
    def peak(module):
        torch.cuda.reset_peak_memory_stats(GPU)
        start = torch.cuda.memory_allocated(GPU)
        module(torch.ones(256, 64, 16, device=GPU)).sum().backward()
        return torch.cuda.max_memory_allocated(GPU) - start

    module = nets.torch_encoder().to(GPU).train()
    peak(module)
    plain = peak(module)
    with recomputed(module):
        assert peak(module) < 0.8 * plain


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_compiled_for_a_gpu_learns_the_same(tmp_path, precision):
    settings = Schedule(4, 0.03, precision=precision)
    plain, _ = learn(tmp_path / "1", settings, GPU, held_out=numbers(16))
    compiled, _ = learn(tmp_path / "2", replace(settings, compile=True), GPU, held_out=numbers(16))
    assert same(plain, compiled, atol=1e-3 if precision == "float32" else 0.05)
    assert not same(plain, perceptron(), atol=0.1)


LESSONS = {"plain": {}, "by depth": {"layer_decay": 0.9}, "sgd": {"optimizer": "sgd", "lr": 0.1}}


@pytest.mark.cuda
@pytest.mark.parametrize("name", LESSONS)
def test_a_student_learns_on_a_gpu(tmp_path, name):
    student, teacher = student_and_teacher(tmp_path)
    held_out = patterns(96, seed=1)
    asked = {"data": "train", "eval_data": "val", "epochs": 6, "alpha": 0.0, "lr": 5e-3, **LESSONS[name]}
    data = {"train": patterns(), "val": held_out}
    made = run_stage(tmp_path, distill, asked, model=student, steps={"model": teacher}, data=data, device="cuda:0")
    assert made.metrics["eval_accuracy"] > 0.8
    assert made.metrics["eval_accuracy"] == pytest.approx(accuracy(made, held_out), abs=0.03)


@pytest.mark.cuda
def test_an_encoder_imitates_on_a_gpu_with_little_memory(tmp_path):
    student, teacher = drawn(tmp_path, "encoder", 1), drawn(tmp_path, "encoder", 2)
    asked = {"data": "train", "epochs": 3, "lr": 1e-3, "checkpoint_activations": True, "accumulate": 2}
    data = {"train": Rows(rows_of("encoder"), 8)}
    made = run_stage(tmp_path, distill, asked, model=student, steps={"model": teacher}, data=data, device="cuda:0")
    losses = [line["imitation"] for line in history(made)]
    assert losses[-1] < losses[0]
