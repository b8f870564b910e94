"""Layers split in two: by their weights or by what they give, to a share of energy or of work, where it pays."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import low_rank as numerics
from modelpack.numerics import macs, models, structure
from modelpack.numerics.low_rank import ranks, spectra
from modelpack.numerics.low_rank.layers import Layer
from modelpack.numerics.randomness import seeded
from modelpack.stages.distill import distill
from modelpack.stages.export import export
from modelpack.stages.low_rank import LowRankConfig, low_rank
from modelpack.stages.prune import prune
from support import Rows, run_stage
from test_models import IDS, feed_for, imported, outputs

torch.set_num_threads(1)


class Wide(nn.Module):
    """A multilayer perceptron and convolutions, wide enough that splits pay."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.deep = nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 32, 2)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 48)

    def forward(self, x):
        x = functional.relu(self.deep(functional.relu(self.conv(x))))
        x = functional.relu(self.up(self.depthwise(x)))
        return self.fc2(functional.relu(self.fc1(x.mean((2, 3)))))


PICTURES = {"x": torch.linspace(-2, 2, 4 * 3 * 64).sin().view(4, 3, 8, 8)}


def wide(dtype=torch.float64):
    with seeded(0):
        return Wide().to(dtype).eval()


def thin(layer, rank):
    """Give a layer weights of a low rank."""
    with torch.no_grad():
        left, values, right = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
        layer.weight.copy_(((left[:, :rank] * values[:rank]) @ right[:rank]).view_as(layer.weight))


def doubled(feed):
    return {name: value.double() for name, value in feed.items()}


def split(module, feed, *, rows=None, convolutions="auto", kept=(), **wanted):
    found = numerics.find(module, feed, kept, convolutions)
    evidence = numerics.Evidence(rows, None, "cpu") if rows is not None else None
    return numerics.split(module, feed, found, numerics.decompose(module, found.layers, evidence), **wanted)


def test_layers_of_low_rank_are_split_without_any_loss():
    module, feed = wide(), doubled(PICTURES)
    for path, rank in (("deep", 5), ("fc1", 7), ("fc2", 6)):
        thin(module.get_submodule(path), rank)
    before = module(feed["x"])
    whole = macs.count(module, feed)
    made = split(module, feed, energy=1 - 1e-12, kept=["conv"])
    assert {row["layer"]: row["rank"] for row in made.table} == {"deep": 8, "fc1": 8, "fc2": 8}
    assert torch.allclose(module(feed["x"]), before, atol=1e-8)
    assert made.macs == pytest.approx(macs.count(module, feed) / whole)
    assert sum(row["before"] - row["after"] for row in made.table) == pytest.approx(whole * (1 - made.macs))
    assert module.deep[0].stride == (2, 2)
    assert module.deep[1].bias is None
    assert module.fc1[1].bias is not None


def test_what_cannot_be_split_stays_with_a_reason():
    module = wide()
    module.fc1.register_forward_hook(lambda *_: None)
    made = split(module, doubled(PICTURES), energy=0.9, kept=["fc2"])
    assert made.left["depthwise"] == "its channels are in groups"
    assert made.left["up"] == "a layer of the type ConvTranspose2d"
    assert made.left["fc2"] == "keep names it"
    assert "code of their own" in made.left["fc1"]


class Odd(nn.Module):
    """Layers that are read, shared, called twice, or never called."""

    def __init__(self):
        super().__init__()
        self.read, self.plain, self.idle = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.small = nn.Linear(32, 1)

    def forward(self, x):
        x = self.plain(self.plain(functional.linear(x, self.read.weight)))
        return self.small(self.normed(self.two(self.one(x)))) + self.read(x)


def test_shared_read_and_computed_weights_stay():
    with seeded(0):
        odd = Odd().eval()
    feed = {"x": torch.randn(4, 32)}
    found = numerics.find(odd, feed)
    assert [layer.path for layer in found.layers] == ["plain"]
    assert found.layers[0].cost == 2 * 4 * 32 * 32
    assert "AttributeError" in found.left["read"]
    assert found.left["idle"] == "the model never calls it"
    assert found.left["one"] == "it shares its weights with 'two'"
    assert found.left["two"] == "it shares its weights with 'one'"
    assert "computed" in found.left["normed"]
    assert found.left["small"] == "its halves would not be smaller"


class Padded(nn.Conv2d):
    """A convolution that pads by its own code, as TensorFlow's "same" does, and centres its inputs."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.centre = nn.BatchNorm2d(self.in_channels)
        self.centre.running_mean.fill_(0.5)

    def forward(self, x):
        return super().forward(functional.pad(self.centre(x), (0, 1, 0, 1)))


class Scaled(nn.Linear):
    """A layer that does more by its weights than multiply."""

    def forward(self, x):
        return super().forward(x) * self.weight.norm()


def test_subclasses_are_split_where_their_code_bears_it():
    with seeded(0):
        net = nn.Sequential(Padded(4, 16, 3), nn.Flatten(), Scaled(16 * 36, 16)).eval()
    x = torch.randn(2, 4, 7, 7)
    thin(net[0], 6)
    wanted = net(x)
    found = numerics.find(net, {"x": x})
    assert torch.equal(net(x), wanted)
    assert [(layer.path, layer.form) for layer in found.layers] == [("0", "channel")]
    assert found.left == {"2": "Scaled does something of its own with its weights"}
    numerics.split(net, {"x": x}, found, numerics.decompose(net, found.layers, None), energy=0.999999)
    assert isinstance(net[0][0], Padded)
    assert type(net[0][1]) is nn.Conv2d
    assert (net[0][0].out_channels, net[0][0].weight.shape[0]) == (8, 8)
    assert torch.allclose(net(x), wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    outputs_=st.integers(2, 24),
    inputs=st.integers(2, 24),
    rank=st.integers(1, 24),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_data_decide_what_is_kept_and_no_weights_of_that_rank_do_better(outputs_, inputs, rank, bias, seed):
    """Against the closed form: the whitened decomposition, with the mean in the bias where there is one."""
    rank = min(rank, outputs_, inputs)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, outputs_, bias=bias).double())
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(outputs_, inputs, generator=generator, dtype=torch.float64))
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    rows = torch.randn(60, inputs, generator=generator, dtype=torch.float64) @ mixing + 3
    layer = Layer("0", "channel", min(outputs_, inputs), 2, 1, 2, 1)
    seen = spectra.of_outputs(net, [layer], [{"x": rows.numpy()}], None, "cpu")[layer]
    given_ = net(rows)
    pair = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs_, bias=bias)).double()
    spectra.fill(pair, layer, seen, net[0].bias)
    error = float((pair(rows) - given_).detach().square().sum())
    around = rows - rows.mean(0) if bias else rows
    tail = torch.linalg.svdvals(around @ net[0].weight.detach().mT)[rank:].square().sum()
    scale = float(given_.detach().square().sum())
    assert error == pytest.approx(float(tail), abs=1e-9 * scale)
    assert float(seen.lost()[rank]) == pytest.approx(
        float(tail) / max(1e-300, float(seen.energies.sum()) * 60), abs=1e-9
    )


@pytest.mark.parametrize("convolutions", ["channel", "spatial", "auto"])
def test_data_beat_weights_alone_on_these_data_with_convolutions_too(convolutions):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 3 * 64, generator=generator, dtype=torch.float64)
    x = (torch.randn(32, 3, generator=generator, dtype=torch.float64) @ basis).view(32, 3, 8, 8)
    errors = {}
    for name, rows in (("weights", None), ("data", [{"x": x.numpy()}])):
        module = wide()
        wanted = module(x)
        made = split(module, {"x": x}, rows=rows, keep_macs=0.5, convolutions=convolutions)
        assert made.macs == pytest.approx(0.5, rel=0.02)
        errors[name] = float((module(x) - wanted).detach().square().sum())
    assert errors["data"] < 0.5 * errors["weights"]


@pytest.mark.parametrize("wanted", [{"keep_macs": 0.5}, {"energy": 0.7}])
def test_the_better_way_of_each_convolution_is_chosen(wanted):
    feed, judged = doubled(PICTURES), {}
    for convolutions in ("channel", "spatial", "auto"):
        made = split(wide(), feed, rows=[{"x": PICTURES["x"].double().numpy()}], convolutions=convolutions, **wanted)
        lost = sum(1 - row["energy"] for row in made.table)
        judged[convolutions] = lost if "keep_macs" in wanted else made.macs
    assert judged["auto"] <= 1.02 * min(judged["channel"], judged["spatial"])


def test_the_mean_of_what_columns_add_goes_into_the_bias():
    """On constant inputs without borders, a spatial split of any rank gives exactly what the layer did."""
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(4, 6, 3)).double().eval()
    x = torch.ones(2, 4, 7, 7, dtype=torch.float64) * 3
    wanted = net(x)
    layer = next(item for item in numerics.find(net, {"x": x}, convolutions="spatial").layers)
    spectrum = spectra.of_outputs(net, [layer], [{"x": x.numpy()}], None, "cpu")[layer]
    made = structure.halves(net[0], "spatial", 1)
    spectra.fill(made, layer, spectrum, net[0].bias)
    assert torch.allclose(made(x), wanted)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2)])
def test_columns_and_rows_of_kernels_are_the_best_such_product(stride):
    """Against the closed form: the error is the tail of the decomposition of columns by rows."""
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(6, 8, (3, 5), stride=stride, padding=(1, 2)).double().eval())
    feed = {"x": torch.randn(2, 6, 9, 9, dtype=torch.float64)}
    found = numerics.find(net, feed, convolutions="spatial")
    assert [layer.form for layer in found.layers] == ["spatial"]
    layer, weight = found.layers[0], net[0].weight.detach()
    spectrum = spectra.of_weights(net, layer)
    rank = layer.most
    assert rank < layer.full
    numerics.split(net, feed, found, {layer: spectrum}, energy=1 - float(spectrum.lost()[rank]) - 1e-12)
    column, row = net[0]
    together = torch.einsum("rih,orw->oihw", column.weight[..., 0], row.weight[:, :, 0])
    tail = spectrum.energies[rank:].sum()
    assert float((together - weight).detach().square().sum()) == pytest.approx(float(tail))
    assert macs.count(net, feed) == layer.rank_cost * rank
    expected = functional.conv2d(feed["x"], together, net[0][1].bias, stride, (1, 2))
    assert torch.allclose(net(feed["x"]), expected)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ranks_share_a_budget_nearly_as_well_as_trying_all_of_them(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=3))
    layers, lost = [], {}
    for number, (one, other) in enumerate(sizes):
        layer = Layer(str(number), "channel", min(one, other), one * other, one + other, one * other, one + other)
        energies = torch.tensor(
            sorted(data.draw(st.lists(st.floats(0.01, 9), min_size=layer.full, max_size=layer.full)), reverse=True),
            dtype=torch.float64,
        )
        lost[layer] = spectra.Spectrum(energies, energies, energies, energies).lost()
        layers += [layer] if layer.most else []
    if not layers:
        return
    budget = data.draw(st.floats(0.3, 1)) * sum(layer.cost for layer in layers)
    chosen = ranks.by_cost(layers, lost, budget, 1)

    def judged(ranks_):
        cost = sum(layer.rank_cost * rank if rank else layer.cost for layer, rank in zip(layers, ranks_, strict=True))
        return cost, sum(float(lost[layer][rank]) if rank else 0 for layer, rank in zip(layers, ranks_, strict=True))

    tried = [()]
    for layer in layers:
        tried = [(*before, rank) for before in tried for rank in range(layer.most + 1)]
    within = [loss for cost, loss in map(judged, tried) if cost <= budget + 1e-9]
    cost, loss = judged([chosen.get(layer, 0) for layer in layers])
    if within:
        assert cost <= budget + 1e-9
        # A price cannot reach every choice: it may miss the best by what one layer's next choices are apart.
        assert loss <= min(within) + max(float(lost[layer][1]) for layer in layers)
    else:
        assert cost == pytest.approx(min(judged(item)[0] for item in tried))


def test_the_model_gets_the_work_it_may_have_or_hears_the_nearest():
    for target in (0.8, 0.5, 0.3):
        module, feed = wide(), doubled(PICTURES)
        whole = macs.count(module, feed)
        made = split(module, feed, keep_macs=target)
        assert macs.count(module, feed) / whole == pytest.approx(target, rel=0.02)
        assert all(row["after"] < row["before"] for row in made.table)
    with pytest.raises(StageError, match=r"cannot keep 1.0% .* nearest possible is \d+\.\d%") as caught:
        split(wide(), doubled(PICTURES), keep_macs=0.01)
    assert "set macs" in caught.value.then


def test_a_head_of_many_classes_is_seen_through_its_inputs():
    with seeded(0):
        net = nn.Sequential(nn.Linear(16, 500))
    layer = numerics.find(net, {"x": torch.randn(2, 16)}).layers[0]
    seen = spectra.of_outputs(net, [layer], [{"x": np.random.default_rng(0).random((40, 16), np.float32)}], None, "cpu")
    assert seen[layer].second.shape == (500, 16)
    assert torch.allclose(seen[layer].second @ seen[layer].first, net[0].weight.double(), atol=1e-6)


def test_padded_positions_do_not_count():
    module = nets.encoder().eval()
    layer = next(item for item in numerics.find(module, sentences_feed()).layers if item.path == "layers.0.fc1")
    ids = np.random.default_rng(0).integers(0, 50, (6, 12))
    mask = np.ones_like(ids)
    mask[:, 5:] = 0
    spectra_ = [
        spectra.of_outputs(module, [layer], [{"input_ids": i, "attention_mask": m}], "attention_mask", "cpu")[layer]
        for i, m in ((ids, mask), (np.where(mask, ids, 7), mask), (ids[:, :5], mask[:, :5]))
    ]
    assert torch.allclose(spectra_[0].energies, spectra_[1].energies, atol=1e-6)
    assert torch.allclose(spectra_[0].energies, spectra_[2].energies, atol=1e-5)


def sentences_feed():
    ids = torch.arange(24).view(2, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_what_is_not_finite_is_named():
    for path, says in (("fc1", "weights of this layer"), ("conv", "weights of this layer")):
        module = wide()
        with torch.no_grad():
            module.get_submodule(path).weight.view(-1)[0] = float("nan")
        with pytest.raises(StageError, match=says) as caught:
            split(module, doubled(PICTURES), energy=0.9)
        assert caught.value.where == path
    with pytest.raises(StageError, match="what this layer gives is not finite"):
        split(wide(), doubled(PICTURES), rows=[{"x": np.full((1, 3, 8, 8), np.inf)}], energy=0.9)


def sentences(count=24):
    ids = np.random.default_rng(0).integers(0, 50, (count, 12))
    return Rows({"input_ids": ids, "attention_mask": np.ones_like(ids)}, 8)


@pytest.mark.parametrize("wanted", [{"energy": 0.8}, {"macs": 0.7}])
@pytest.mark.parametrize("with_data", [True, False])
def test_the_stage_splits_saves_and_reports(tmp_path, wanted, with_data):
    source = imported(tmp_path, "encoder", nets.TOKENS)
    asked = {**wanted, **({"data": "train"} if with_data else {})}
    events = []
    one = run_stage(tmp_path / "1", low_rank, asked, model=source, data={"train": sentences()}, collect=events)
    two = run_stage(tmp_path / "2", low_rank, asked, model=source, data={"train": sentences()})
    assert one.id == two.id
    module, original, feed = models.load(one), models.load(source), feed_for(source, 2)
    assert macs.count(module, feed) / macs.count(original, feed) == pytest.approx(one.metrics["macs"], rel=0.02)
    assert models.parameter_count(module) == one.metrics["parameters"] < models.parameter_count(original)
    table = one.manifest.record["results"]["layers"]
    for row in table:
        first, second = module.get_submodule(row["layer"])
        assert first.out_features == second.in_features == row["rank"]
        assert row.keys() == {"layer", "type", "form", "rank", "full", "energy", "before", "after"}
    told = " ".join(getattr(event, "text", "") for event in events)
    assert f"split {len(table)} layers" in told
    assert ("positions where 'attention_mask' is 0 did not count" in told) is with_data


def test_a_model_with_fewer_blocks_and_split_layers_exports_is_pruned_and_learns(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    shallow = run_stage(tmp_path, prune, {"drop": ["block1"]}, model=source)
    made = run_stage(tmp_path, low_rank, {"macs": 0.8}, model=shallow)
    assert [item.operation for item in structure.made(models.load(made))][:2] == ["bypass", "factor"]
    feed = feed_for(made)
    exported = run_stage(tmp_path, export, {}, model=made)
    session = onnxruntime.InferenceSession(exported.file("model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
    assert np.allclose(found, outputs(models.load(made), feed)["output"], atol=1e-4)
    pruned = run_stage(tmp_path, prune, {"macs": 0.7}, model=made)
    images = Rows({"image": np.random.default_rng(0).random((16, 1, 16, 16), np.float32)}, 8)
    lesson = {"teacher": "model", "data": "train", "epochs": 1, "task": "none"}
    learned = run_stage(tmp_path, distill, lesson, model=pruned, steps={"model": source}, data={"train": images})
    assert macs.count(models.load(learned), feed) == macs.count(models.load(pruned), feed)


def test_tied_weights_stay_tied(tmp_path):
    source = imported(tmp_path, "tied", IDS)
    with pytest.raises(StageError, match="no layer becomes smaller") as caught:
        run_stage(tmp_path, low_rank, {"energy": 0.99999}, model=source)
    assert "it shares its weights with 'embedding'" in caught.value.what
    module = models.load(run_stage(tmp_path, low_rank, {"energy": 0.5}, model=source))
    assert module.decoder.weight is module.embedding.weight
    assert isinstance(module.inner, nn.Sequential)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "by one of energy and macs"),
        ({"energy": 0.9, "macs": 0.5}, "by one of energy and macs"),
        ({"energy": 1}, "less than 1"),
        ({"macs": 0}, "greater than 0"),
        ({"macs": 0.5, "convolutions": "tucker"}, "channel"),
        ({"macs": 0.5, "rows": 8}, "rows is about data"),
        ({"macs": 0.5, "mask": "m"}, "mask is about data"),
        ({"rank": 8}, "rank"),
    ],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(ValidationError, match=says):
        LowRankConfig.model_validate(wrong)
    assert low_rank.owes == {"unrecovered"}


def test_patterns_and_convolutions_are_respected(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    made = run_stage(tmp_path, low_rank, {"macs": 0.9, "convolutions": "spatial", "keep": ["block*"]}, model=source)
    rows = made.manifest.record["results"]["layers"]
    assert {row["layer"]: row["form"] for row in rows}.items() >= {("stem", "spatial"), ("down", "spatial")}
    assert not any(row["layer"].startswith("block") for row in rows)
    with pytest.raises(StageError, match="no module matches 'blok'"):
        run_stage(tmp_path, low_rank, {"macs": 0.9, "keep": ["blok"]}, model=source)
    with pytest.raises(StageError, match="no layer becomes smaller"):
        run_stage(tmp_path, low_rank, {"energy": 0.9, "convolutions": "none", "keep": ["head"]}, model=source)
