"""Layers split in two: by their weights or by what they give, to a share of energy or of work, where it pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics import low_rank as numerics
from modelpack.numerics import macs
from modelpack.numerics.fitting import Reading
from modelpack.numerics.low_rank import ranks, spectra
from modelpack.numerics.low_rank.layers import Layer
from modelpack.numerics.randomness import seeded

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
    reading = Reading(lambda: rows, None, "cpu") if rows is not None else None
    return numerics.split(module, feed, found, numerics.decompose(module, found.layers, reading), **wanted)


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
    made = split(module, doubled(PICTURES), energy=0.7, kept=["fc2"])
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
    assert found.left["small"] == "its halves would not be smaller and faster"


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


@pytest.mark.parametrize("wanted", [{"keep_macs": 0.5}, {"energy": 0.7}])
def test_the_better_way_of_each_convolution_is_chosen(wanted):
    feed, judged = doubled(PICTURES), {}
    for convolutions in ("channel", "spatial", "auto"):
        made = split(wide(), feed, rows=[{"x": PICTURES["x"].double().numpy()}], convolutions=convolutions, **wanted)
        lost = sum(1 - row["energy"] for row in made.table)
        judged[convolutions] = lost if "keep_macs" in wanted else made.macs
    assert judged["auto"] <= 1.02 * min(judged["channel"], judged["spatial"])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ranks_share_a_budget_nearly_as_well_as_trying_all_of_them(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=3))
    layers, lost = [], {}
    for number, (one, other) in enumerate(sizes):
        layer = Layer(str(number), "channel", min(one, other), one * other, one + other, one * other, one + other, 1.0)
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
    with pytest.raises(StageError, match=r"cannot keep 1% .* nearest possible is \d+(\.\d+)?%") as caught:
        split(wide(), doubled(PICTURES), keep_macs=0.01)
    assert "set macs" in caught.value.then


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
