"""What each setting of the training loop promises, on models so small that a training takes no time."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics.calling import call
from modelpack.numerics.randomness import chained
from modelpack.numerics.training import Lesson, Rows, Schedule, layout, tensors, train
from modelpack.numerics.training.averaging import Average
from modelpack.numerics.training.batches import TRUTH, _cuts
from modelpack.numerics.training.depth import blocks, depths
from modelpack.numerics.training.optimizer import build
from modelpack.numerics.training.recompute import recomputed
from modelpack.stages.distill import DistillConfig
from modelpack.stages.qat import QatConfig
from modelpack.stages.recover import RecoverConfig
from modelpack.stages.schedule_config import schedule
from modelpack.tensors import TensorSpec
from support import Rows as Source

torch.set_num_threads(1)
CPU = torch.device("cpu")


@dataclass
class Squares:
    """Learning numbers by squared error, averaged over the rows."""

    learned: nn.Module | None = None

    def losses(self, student, inputs, beside):
        return {"loss": functional.mse_loss(call(student, inputs)["output"], beside[TRUTH])}

    def judge(self, student, inputs, beside):
        rows = len(beside[TRUTH])
        return {"score": (-float(self.losses(student, inputs, beside)["loss"]) * rows, rows)}

    def figure(self, score):
        return "eval_loss", -score


def numbers(count=41, batch=8, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, 6)).astype(np.float32)
    y = np.tanh(x @ np.random.default_rng(99).standard_normal((6, 2))).astype(np.float32)
    return Rows(Source({"x": x, "y": y}, batch).batches, {"x": TensorSpec(shape=("batch", 6))}, "y")


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def lesson(settings, data=None, held_out=None, objective=None):
    return Lesson(objective or Squares(), data or numbers(), held_out, settings, CPU, 0)


def trained(root, settings, module=None, **of):
    module = perceptron() if module is None else module
    found = train(module, lesson(settings, **of), root)
    return module, found


def same(one, other, atol=0.0):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@pytest.mark.parametrize("count", [41, 33, 40, 50])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_accumulated_batches_give_the_step_of_one_large_batch(tmp_path, count, optimizer):
    settings = Schedule(3, 0.05, optimizer=optimizer)
    large, one = trained(tmp_path / "1", settings, data=numbers(count, 32))
    small, other = trained(tmp_path / "2", replace(settings, accumulate=4), data=numbers(count, 8))
    assert same(large, small, atol=2e-6)
    assert not same(large, perceptron(), atol=1e-2)
    for mine, its in zip(one.history, other.history, strict=True):
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
        assert mine["lr"] == its["lr"]


@given(st.integers(1, 200), st.integers(1, 40))
def test_batches_hold_every_row_and_none_is_alone(total, size):
    cuts = _cuts(total, size)
    sizes = [end - begin for begin, end in itertools.pairwise(cuts)]
    assert sum(sizes) == total
    assert max(sizes) <= size + 1
    assert all(found == size for found in sizes[:-1])
    assert size == 1 or total == 1 or min(sizes) > 1


def test_the_training_follows_the_optimizer_written_out(tmp_path):
    settings = Schedule(2, 0.03, decay=0.1, clip=0.5)
    module, found = trained(tmp_path, settings)
    own, data, done = perceptron(), numbers(), 0
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in own.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in own.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    for epoch in (1, 2):
        for batch in data.shuffled(chained(0, epoch, 1)):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * settings.fraction(done / (2 * data.steps))
            optimizer.zero_grad()
            functional.mse_loss(own(torch.tensor(batch["x"])), torch.tensor(batch[TRUTH])).backward()
            nn.utils.clip_grad_norm_(own.parameters(), 0.5)
            optimizer.step()
            done += 1
    assert same(module, own, atol=1e-6)
    assert [line["epoch"] for line in found.history] == [1, 2]
    assert all(line["seconds"] >= 0 for line in found.history)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("cosine", {0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        ("linear", {0.2: 1.0, 0.6: 0.5, 0.8: 0.25, 1.0: 0.0}),
        ("constant", {0.2: 1.0, 0.6: 1.0, 1.0: 1.0}),
        ("one_cycle", {0.0: 1 / 25, 0.1: 13 / 25, 0.2: 1.0, 1.0: 4e-6}),
    ],
)
def test_rates_rise_and_fall_as_their_curve_says(curve, expected):
    settings = Schedule(1, 1.0, curve=curve, warmup=0.2)
    for done, fraction in expected.items():
        assert settings.fraction(done) == pytest.approx(fraction, abs=1e-9), done
    rising = [settings.fraction(done) for done in np.linspace(0, 0.2, 20)]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.1


def test_one_cycle_is_that_of_torch_for_rates():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.3, cycle_momentum=False, div_factor=25, final_div_factor=1e4
    )
    ours = Schedule(1, 1.0, curve="one_cycle", warmup=0.293)
    for step in range(101):
        assert ours.fraction(step / 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        if step < 100:
            optimizer.step()
            theirs.step()


def test_the_moving_average_is_the_one_written_out():
    module = perceptron()
    average = Average(module, 0.9)
    expected = {name: tensor.double() for name, tensor in tensors.copied(module).items()}
    for update in range(1, 200):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.follow(update)
        decay = min(0.9, update / (update + 9))
        expected = {
            name: decay * value + (1 - decay) * dict(tensors.named(module))[name].detach().double()
            for name, value in expected.items()
        }
    live = tensors.copied(module)
    with average.shown():
        for name, value in tensors.copied(module).items():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, live[name]) for name, value in tensors.copied(module).items())


def test_the_average_is_what_is_judged_and_kept(tmp_path):
    held_out = numbers(24, 8, seed=5)
    plain, one = trained(tmp_path / "1", Schedule(4, 0.05, warmup=0.0), held_out=held_out)
    averaged, other = trained(tmp_path / "2", Schedule(4, 0.05, warmup=0.0, average=0.8), held_out=held_out)
    assert not same(plain, averaged, atol=1e-3)
    assert [line["loss"] for line in one.history[1:]] == [line["loss"] for line in other.history[1:]]
    score = -sum(
        functional.mse_loss(averaged(torch.tensor(batch["x"])), torch.tensor(batch[TRUTH])).item() * 8
        for batch in held_out.picked()
    )
    assert other.score == pytest.approx(score / 24)


def test_rates_fall_with_depth(tmp_path):
    module = nets.encoder(layers=3)
    found = depths(module)
    assert found["words.weight"] == found["positions.weight"] == 0
    assert [found[f"layers.{place}.fc1.weight"] for place in range(3)] == [1, 2, 3]
    assert found["classifier.weight"] == 4
    optimizer = build(module, None, Schedule(1, 1.0, layer_decay=0.5))
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        assert scales[id(parameter)] == 0.5 ** (4 - found[name])
    module, _ = trained(tmp_path, Schedule(2, 0.05, layer_decay=1e-6, clip=0))
    before = perceptron()
    assert torch.allclose(module[0].weight, before[0].weight, atol=1e-6)
    assert not torch.allclose(module[2].weight, before[2].weight, atol=1e-2)


def test_the_blocks_of_models_are_found():
    assert list(blocks(nets.encoder(layers=3))) == ["layers.0", "layers.1", "layers.2"]
    assert list(blocks(nets.torch_encoder())) == ["encoder.layers.0", "encoder.layers.1"]
    assert blocks(perceptron()) == {}
    assert depths(perceptron()) == {"0.weight": 0, "0.bias": 0, "2.weight": 1, "2.bias": 1}


@pytest.mark.parametrize(("factory", "size"), [(nets.torch_encoder, None), (nets.cnn, (4, 1, 16, 16))])
def test_activations_computed_again_give_the_same_gradients(factory, size):
    torch.manual_seed(0)
    module = factory().train()
    x = torch.randn(size) if size else torch.randn(4, 5, 16)
    once, again = copy.deepcopy(module), copy.deepcopy(module)
    results = []
    for trial in (once, again):
        torch.manual_seed(7)
        if trial is again:
            with recomputed(trial):
                out = trial(x)
                out.square().sum().backward()
        else:
            out = trial(x)
            out.square().sum().backward()
        results.append(out)
    assert torch.equal(*results)
    for one, other in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(once.buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other)
    assert "forward" not in vars(next(iter(blocks(again).values())))


def test_activations_take_less_memory_when_they_are_computed_again():
    def kept(module):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            module(torch.randn(8, 16, 16))
        return sum(sizes)

    module = nets.torch_encoder().train()
    plain = kept(module)
    with recomputed(module):
        assert kept(module) < 0.5 * plain


def test_a_model_without_blocks_cannot_compute_them_again(tmp_path):
    with pytest.raises(StageError, match="no repeated blocks"):
        trained(tmp_path, Schedule(1, 0.1, recompute=True))


def test_a_student_is_compiled_for_as_long_as_it_learns(tmp_path, monkeypatch):
    calls = []

    def compiled(function):
        return lambda *args: calls.append(1) or function(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    with_kernels, _ = trained(tmp_path / "1", Schedule(2, 0.05, compile=True), held_out=numbers(16))
    assert len(calls) == 2 * numbers().steps + 3 * 2
    assert with_kernels._compiled_call_impl is None
    plain, _ = trained(tmp_path / "2", Schedule(2, 0.05), held_out=numbers(16))
    assert same(plain, with_kernels)


def test_convolutions_lie_channels_last_while_they_are_trained_where_they_can():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return self.conv(image).view(len(image), -1)

    image = {"image": torch.randn(2, 3, 8, 8)}
    module = nets.cnn(channels=3)
    before = module.stem.weight
    with layout.channels_last(module, image) as fits:
        assert fits
        assert module.stem.weight is before
        assert module.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.stem.weight.is_contiguous()
    with layout.channels_last(Flat(), image) as fits:
        assert not fits
    with layout.channels_last(perceptron(), {"x": torch.randn(2, 6)}) as fits:
        assert not fits
    asked = nets.cnn(channels=3).eval()
    with torch.no_grad():
        wanted = asked(image["image"])
        assert layout.settle(asked, image)
        assert asked.stem.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(asked(image["image"]), wanted, atol=1e-5)
    flat = Flat().eval()
    assert not layout.settle(flat, image)
    assert flat.conv.weight.is_contiguous()


def test_training_ends_when_patience_is_over(tmp_path):
    settings = Schedule(30, 0.5, curve="constant", patience=3, every=2, clip=0)
    _, found = trained(tmp_path, settings, held_out=numbers(16, 8, seed=3))
    last = found.history[-1]
    assert last["epoch"] < 30
    judged = [line["epoch"] for line in found.history if "score" in line]
    assert judged == list(range(0, last["epoch"] + 1, 2))
    assert last["epoch"] - found.best_epoch >= 3
    assert judged[-2] - found.best_epoch < 3
    assert found.score == max(line["score"] for line in found.history if "score" in line)


def test_settings_reach_the_loop():
    asked = {
        "epochs": 7,
        "lr": 0.5,
        "schedule": "linear",
        "warmup": 0.2,
        "optimizer": "sgd",
        "momentum": 0.8,
        "weight_decay": 0.3,
        "clip": 2,
        "accumulate": 4,
        "ema": 0.99,
        "eval_every": 2,
        "patience": 3,
        "eval_data": "val",
        "data": "train",
    }
    only = {"layer_decay": 0.9, "precision": "bfloat16", "checkpoint_activations": True, "compile": True}
    common = Schedule(
        7, 0.5, "linear", 0.2, "sgd", 0.8, 0.3, 2, 4, average=0.99, patience=3, every=2, precision="float32"
    )
    assert schedule(QatConfig.model_validate(asked)) == common
    wanted = replace(common, layer_decay=0.9, precision="bfloat16", recompute=True, compile=True)
    for config in (DistillConfig, RecoverConfig):
        assert schedule(config.model_validate({**asked, **only})) == wanted


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"momentum": 0.5}, "`momentum` belongs to `optimizer: sgd`"),
        ({"patience": 2}, "`patience` is about evaluations"),
        ({"eval_every": 2}, "`eval_every` is about evaluations"),
        ({"accumulate": 0}, "greater than 0"),
        ({"ema": 1.0}, "less than 1"),
        ({"schedule": "step"}, "one_cycle"),
        ({"layer_decay": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_nothing_or_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        DistillConfig.model_validate({"data": "train", **wrong})
