"""Sparsity: exactly as many zeros as asked, where asked, chosen and repaired as the papers say, and kept afterwards."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

import nets
from crewing import together
from modelpack.errors import StageError
from modelpack.numerics import models, sparsity, training, zeros
from modelpack.numerics.sparsity import compressed, layers, magnitude, moments, refit, sparsegpt, wanda
from modelpack.numerics.sparsity.pattern import Pattern, chosen, smallest
from modelpack.stages.distill import distill
from modelpack.stages.model import model
from modelpack.stages.qat import qat
from modelpack.stages.recover import recover
from modelpack.stages.sparsify import SparsifyConfig, sparsify
from modelpack.tensors import TensorSpec
from support import Rows, run_stage
from test_models import feed_for, imported, outputs, same

torch.set_num_threads(1)


def images(count=48):
    return Rows({"image": np.random.default_rng(0).standard_normal((count, 1, 16, 16)).astype(np.float32)}, 16)


def tokens(count=32, real=12):
    generator = np.random.default_rng(0)
    mask = np.zeros((count, 12), np.int64)
    mask[:, :real] = 1
    return Rows({"input_ids": generator.integers(0, 50, (count, 12)), "attention_mask": mask}, 8)


def run(root, source, wanted, rows=None, **more):
    wanted = {**wanted, **({"data": "train"} if rows is not None else {})}
    return run_stage(root, sparsify, wanted, model=source, data={"train": rows} if rows is not None else {}, **more)


def weights(artifact):
    return load_file(artifact.file("weights.safetensors"))


def texts(events):
    return [getattr(event, "text", "") for event in events]


@pytest.mark.parametrize(
    ("method", "refit"), [("magnitude", None), ("wanda", False), ("wanda", None), ("sparsegpt", None)]
)
@pytest.mark.parametrize(
    ("factory", "inputs", "rows"), [("cnn", nets.IMAGE, images()), ("encoder", nets.TOKENS, tokens())]
)
def test_every_layer_has_the_ratio_and_the_rest_is_as_it_was(tmp_path, method, refit, factory, inputs, rows):
    source = imported(tmp_path, factory, inputs)
    seen = rows if method != "magnitude" else None
    wanted = {"method": method, "ratio": 0.6, "refit": refit}
    one = run(tmp_path / "1", source, wanted, seen)
    two = run(tmp_path / "2", source, wanted, seen)
    assert one.id == two.id
    before, after = weights(source), weights(one)
    told = zeros.read(one)
    assert told.method == method
    assert told.layers
    for name, tensor in before.items():
        gone = int((after[name] == 0).sum())
        if name not in told.layers:
            assert torch.equal(tensor, after[name])
            continue
        width = tensor[0].numel()
        assert (
            gone
            == told.layers[name]
            == (round(0.6 * width) * len(tensor) if method == "wanda" else round(0.6 * tensor.numel()))
        )
        stayed = after[name] != 0
        assert torch.equal(tensor[stayed], after[name][stayed]) is (method == "magnitude" or refit is False)
    assert not any(
        "classifier" in name or "head" in name or "words" in name or "depthwise" in name for name in told.layers
    )
    assert one.metrics["sparsity"] == pytest.approx(0.6, abs=0.02)
    feed = feed_for(one)
    assert same(outputs(models.load(one), feed), outputs(models.load(two), feed))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("1:8", 1, 8)])
def test_of_each_inputs_in_a_row_as_many_stay_as_the_pattern_says(tmp_path, method, pattern, keep, of):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    made = run(tmp_path, source, {"method": method, "pattern": pattern}, images() if method != "magnitude" else None)
    told, after = zeros.read(made), weights(made)
    assert told.pattern == pattern
    assert {"down.weight", "block1.expand.weight", "block3.project.weight"} == set(told.layers) & {
        "down.weight", "block1.expand.weight", "block3.project.weight"
    }  # fmt: skip
    for name in told.layers:
        channels = after[name].movedim(1, -1).reshape(-1, of)
        assert ((channels != 0).sum(1) == keep).all(), name
    left = made.manifest.record["results"]["left_alone"]
    assert left["stem"] == f"its 1 inputs are no multiple of {of}"
    assert left["head"] == "it gives an output of the model"
    assert left["block1.depthwise"].startswith("depthwise")


def test_together_layers_of_small_weights_lose_more(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    made = run(tmp_path, source, {"scope": "global", "ratio": 0.5})
    before, after, told = weights(source), weights(made), zeros.read(made)
    assert told.zeros == round(0.5 * sum(after[name].numel() for name in told.layers))
    largest = max(float(before[name][after[name] == 0].abs().max()) for name in told.layers)
    assert all(float(after[name][after[name] != 0].abs().min()) >= largest for name in told.layers)
    assert len({count / after[name].numel() for name, count in told.layers.items()}) > 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data())
def test_exactly_the_smallest_are_marked_even_among_equals(count, data):
    scores = torch.tensor(
        [data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)) for _ in range(3)]
    ).double()
    wanted = data.draw(st.integers(0, count))
    marked = smallest(scores, wanted)
    order = np.argsort(scores.numpy(), axis=1, kind="stable")
    assert all(
        set(np.flatnonzero(row)) == set(ranks[:wanted]) for row, ranks in zip(marked.numpy(), order, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    flat=st.booleans(),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)  # fmt: skip
def test_a_convolution_is_its_matrix_times_what_it_reads(flat, groups, kernel, stride, dilation, padding, mode):
    torch.manual_seed(0)
    if padding == "same":  # torch warns of even kernels
        stride, kernel = 1, kernel // 2 * 2 + 1
    layer = (nn.Conv1d if flat else nn.Conv2d)(
        4, 6, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode
    ).double()
    values = torch.randn(2, 4, *([9] if flat else [9, 8]), dtype=torch.float64)
    wanted = layer(values)
    matrix = layers.Layer("weight", (layer,)).matrix()
    given = matrix @ layers.inputs(layer, values).mT
    found = given.reshape(6, 2, *wanted.shape[2:]).transpose(0, 1)
    assert torch.allclose(found, wanted, atol=1e-12)
    before = layer.weight.detach().clone()
    layers.Layer("weight", (layer,)).put(matrix)
    assert torch.equal(layer.weight, before)


def problem(rows=12, width=48, seed=0, groups=1):
    """Weights, and moments of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, width, width // 3, generator=generator, dtype=torch.float64)
    hidden = torch.randn(groups, width // 3, 400, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(groups, width, 400, generator=generator, dtype=torch.float64)
    inputs = mixing @ hidden + noise
    return torch.randn(groups, rows, width, generator=generator, dtype=torch.float64), inputs @ inputs.mT


def error(weight, made, moment):
    gap = weight - made
    return float(((gap @ moment) * gap).sum())


def surgery(weight, moment, ratio, pattern, damping):
    """Walk over the inputs as the paper derives it, inverting the moment of the inputs that are left at each of them."""
    work, count = weight.clone(), weight.shape[-1]
    firm = moment + damping * moment.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(count, dtype=torch.float64)
    inverses = [torch.linalg.inv(firm[0, j:, j:]) for j in range(count)]
    zero = torch.zeros(weight.shape[1:], dtype=torch.bool)
    for j in range(count):
        ahead = slice(j, j + pattern.of) if pattern else slice(0, count)
        if (pattern and j % pattern.of == 0) or (not pattern and j == 0):
            cost = torch.stack([work[0, :, i] ** 2 / inverses[i][0, 0] for i in range(count)[ahead]], 1)
            places = (cost if pattern else cost.flatten()).sort(stable=True).indices
            if pattern:
                zero[:, ahead] = zero[:, ahead].scatter(1, places[:, : pattern.of - pattern.keep], value=True)
            else:
                zero.view(-1)[places[: round(ratio * cost.numel())]] = True
        step = (work[0, :, j] * zero[:, j]) / inverses[j][0, 0]
        work[0, :, j:] -= step[:, None] * inverses[j][0][None]
        work[0, zero[:, j], j] = 0
    return work


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(1, 3)])
def test_sparsegpt_is_optimal_brain_surgery(pattern):
    weight, moment = problem()
    made = sparsegpt.solved(weight, moment, 0.5, pattern, 0.01)
    assert torch.allclose(made, surgery(weight, moment, 0.5, pattern, 0.01), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.2, 0.6), two=st.booleans(), width=st.sampled_from([48, 200]))
def test_on_correlated_inputs_repair_beats_choice_and_choice_beats_size(seed, ratio, two, width):
    weight, moment = problem(seed=seed, groups=2, width=width)
    pattern = Pattern(2, 4) if two else None
    made = sparsegpt.solved(weight, moment, ratio, pattern, 0.01)
    fitted = refit.refitted(weight, made, moment, 0.01)
    power = moment.diagonal(dim1=-2, dim2=-1)
    plain = weight.masked_fill(magnitude.zeros(weight, ratio, pattern), 0)
    judged = weight.masked_fill(wanda.zeros(weight, power, ratio, pattern), 0)
    assert error(weight, made, moment) < 0.7 * min(error(weight, plain, moment), error(weight, judged, moment))
    assert error(weight, fitted, moment) < 0.5 * error(weight, made, moment)
    assert torch.equal(fitted == 0, made == 0)
    expected = round(0.5 * weight.numel()) if two else 2 * round(ratio * 12 * width)
    assert int((made == 0).sum()) == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.1, 0.9))
def test_no_output_is_worse_for_being_refitted_and_the_fit_is_least_squares(seed, ratio):
    weight, moment = problem(rows=4, width=16, seed=seed)
    made = weight.masked_fill(magnitude.zeros(weight, ratio, None), 0)
    fitted = refit.refitted(weight, made, moment, 0.1)
    firm = moment + 0.1 * moment.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(16, dtype=torch.float64)
    before, after = (refit.error(weight, item, firm) for item in (made, fitted))
    assert bool((after <= before * (1 + 1e-9)).all())
    for row, stays in enumerate(made[0] != 0):
        wanted = torch.zeros(16, dtype=torch.float64)
        wanted[stays] = torch.linalg.solve(firm[0][stays][:, stays], (firm[0] @ weight[0, row])[stays])
        best = refit.error(weight[:, row : row + 1], wanted[None, None], firm)
        assert float(after[0, row]) <= 1.1 * float(best) + 0.02 * float(before.sum())


def test_wanda_compares_the_weights_of_one_output():
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]]], dtype=torch.float64)
    power = torch.tensor([[100.0, 1.0, 1.0, 4.0]], dtype=torch.float64)
    marked = wanda.zeros(weight, power, 0.5, None)
    assert marked.tolist() == [[[False, True, True, False], [False, False, True, True]]]
    assert chosen(weight, 0.0, Pattern(1, 2)).tolist() == [[[True, False, True, False], [False, True, False, True]]]


def test_inputs_that_are_always_zero_are_no_obstacle():
    weight, moment = problem()
    moment[:, :5] = moment[:, :, :5] = 0
    for found in (moment, 0 * moment):
        made = sparsegpt.solved(weight, found, 0.5, None, 0.01)
        assert bool(made.isfinite().all())
        assert bool(refit.refitted(weight, made, found, 0.01).isfinite().all())
        assert int((made == 0).sum()) == weight.numel() // 2


def test_moments_are_summed_over_real_positions_alone():
    module = nets.encoder().eval()
    found = layers.find(module, (), (), None, seen=True).layers
    read = []
    module.layers[0].fc1.register_forward_pre_hook(lambda _layer, given: read.append(given[0].detach().double()))

    def gathered(mask, whole):
        rows = list(tokens(8, real=7).batches())
        return moments.gather(module, found, lambda: rows, mask=mask, whole=whole, device="cpu")

    counted = gathered("attention_mask", True)["layers.0.fc1.weight"]
    values = read[0][:, :7].reshape(-1, 32)
    assert torch.allclose(counted[0], values.T @ values, atol=1e-3)
    assert torch.allclose(gathered("attention_mask", False)["layers.0.fc1.weight"][0], counted[0].diagonal(), rtol=1e-5)
    assert float(gathered(None, True)["layers.0.fc1.weight"].diagonal(dim1=1, dim2=2).sum()) > 1.3 * float(
        counted[0].trace()
    )
    shares = list(moments.shares(found, 8 * 3 * 32**2))
    assert [layer for share in shares for layer in share] == list(found)
    assert [len(share) for share in shares[:2]] == [3, 2]


def test_shared_and_computed_weights_embeddings_and_idle_layers(tmp_path):
    ids = {"ids": {"shape": ["batch", "n"], "dtype": "int64", "range": [0, 19]}}
    made = run(tmp_path, imported(tmp_path, "tied", ids), {"head": True})
    assert set(zeros.read(made).layers) == {"inner.weight", "outer.weight"}
    assert made.manifest.record["results"]["left_alone"] == {"decoder": "it shares its weights with an embedding"}

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.again = nn.Linear(4, 4, bias=False)
            self.again.weight = self.one.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.idle = nn.Linear(4, 4)
            self.cube = nn.Conv3d(1, 1, 1)

        def forward(self, x):
            return self.again(self.normed(self.one(x)))

    torch.manual_seed(0)
    module = Odd().eval()
    feeds = [{"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}]
    found = layers.find(module, (), (), None, seen=True)
    told, left = sparsity.sparsify(
        module, found, sparsity.Way("sparsegpt", 0.5), sparsity.Evidence(lambda: feeds, None, "cpu")
    )
    assert told.layers == {"one.weight": 8}
    assert left["idle"] == "the model never calls it"
    assert left["normed"].startswith("its weight is computed")
    assert left["cube"].startswith("the inputs of a Conv3d cannot be looked at")
    assert module.again.weight is module.one.weight


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


def test_refitted_layers_give_nearly_what_they_gave(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    rows = tokens(128)
    feed = models.tensors(next(iter(rows.batches())), "cpu")
    wanted = outputs(models.load(source), feed)["embedding"]
    gaps = []
    for method in ("magnitude", "wanda", "sparsegpt"):
        for fitted in (False, True):
            seen = rows if fitted or method != "magnitude" else None
            made = run(tmp_path, source, {"method": method, "refit": fitted}, seen)
            gaps.append(float((outputs(models.load(made), feed)["embedding"] - wanted).norm()))
    assert all(after < 0.9 * before for before, after in zip(gaps[::2], gaps[1::2], strict=True)), gaps


def test_the_gain_is_told_as_it_is(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    events = []
    made = run(tmp_path, source, {"ratio": 0.8}, collect=events)
    before, after = made.metrics["source_compressed"], made.metrics["model_compressed"]
    assert before == compressed.size(source.file("weights.safetensors"))
    assert after == compressed.size(made.file("weights.safetensors")) < 0.65 * before
    told = next(text for text in texts(events) if "smaller only when compressed" in text)
    assert told.endswith("no speed on this runtime")
    assert f"zlib level {compressed.LEVEL}: " in told
    assert made.model_bytes == source.model_bytes


def test_what_cannot_be_done_is_said_with_what_to_do(tmp_path):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    with pytest.raises(StageError, match="exclude: no module matches 'layer'") as caught:
        run(tmp_path, source, {"exclude": ["layer"]})
    assert "layers" in caught.value.then
    with pytest.raises(StageError, match="no layer that can be sparse") as caught:
        run(tmp_path, source, {"exclude": ["layers"]})
    assert "layers.0.attention.query: excluded" in caught.value.then
    with pytest.raises(StageError, match="no rows that the model could read"):
        run(tmp_path, source, {"method": "wanda"}, images())
    module = nets.encoder().eval()
    with torch.no_grad():
        module.layers[1].fc1.weight[0, 0] = torch.nan
    found = layers.find(module, (), (), None, seen=False)
    with pytest.raises(StageError, match="not finite") as caught:
        sparsity.sparsify(module, found, sparsity.Way("magnitude", 0.5))
    assert caught.value.where == "layers.1.fc1"
    bad = [{"x": np.full((4, 8), np.inf, np.float32)}]
    net = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(StageError, match="what this layer reads is not finite"):
        sparsity.sparsify(
            net,
            layers.find(net, (), (), None, seen=True),
            sparsity.Way("wanda", 0.5),
            sparsity.Evidence(lambda: bad, None, "cpu"),
        )


def test_settings_are_checked():
    for wrong, says in (
        ({"pattern": "4:2"}, "is no pattern"),
        ({"pattern": "2/4"}, "is no pattern"),
        ({"pattern": "2:4", "ratio": 0.5}, "leave out `ratio`"),
        ({"method": "wanda"}, "wanda needs data"),
        ({"scope": "global", "pattern": "2:4"}, "belongs to `method: magnitude`"),
        ({"damping": 0.1}, "by `method: sparsegpt`, or by `refit`"),
        ({"data": "train", "refit": False}, "reads data for `refit` alone"),
        ({"refit": True}, "refit needs data"),
        ({"ratio": 1}, "less than 1"),
        ({"methods": "wanda"}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=says):
            SparsifyConfig.model_validate(wrong)
    assert SparsifyConfig.model_validate({"pattern": "2:4"}).pattern == "2:4"
    assert sparsify.refuses == {"quantized"}


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
    for lost, moved in together("test_sparsify", "trained_together"):
        assert lost == 0
        assert moved > 0.4


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("factory", "inputs", "rows"), [("cnn", nets.IMAGE, images()), ("encoder", nets.TOKENS, tokens())]
)
def test_a_gpu_sets_to_zero_what_the_processor_does(tmp_path, method, factory, inputs, rows):
    source = imported(tmp_path, factory, inputs)
    seen = rows if method != "magnitude" else None
    here, there, again = (
        run(tmp_path / name, source, {"method": method, "ratio": 0.6}, seen, device=device)
        for name, device in (("1", "cpu"), ("2", "cuda:0"), ("3", "cuda:0"))
    )
    assert there.id == again.id
    assert zeros.read(here).layers == zeros.read(there).layers
    one, two = weights(here), weights(there)
    alike = [float(((one[name] == 0) == (two[name] == 0)).float().mean()) for name in zeros.read(here).layers]
    assert min(alike) > 0.97
