"""Importance: every measure equals what its paper's formula gives in float64 on a net small enough to write out."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.pruning import Evidence, importance, sound
from modelpack.numerics.pruning.groups import Group
from modelpack.numerics.pruning.importance import channels
from modelpack.numerics.pruning.importance.gradients import CHUNK
from modelpack.numerics.pruning.surgery import Member

torch.set_num_threads(1)
FEW = settings(max_examples=10, deadline=None)


class Chain(nn.Module):
    """One group of channels: a convolution makes them, a depthwise one passes them on, a third one reads them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.make = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.read = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.read(functional.relu(self.deep(torch.tanh(self.norm(self.make(x)))))).mean((2, 3))


def chain(width, seed=0):
    torch.manual_seed(seed)
    module = Chain(width).eval()
    nn.init.uniform_(module.norm.weight, -1, 1)
    feed = {"x": torch.randn(2, 2, 5, 5)}
    groups = sound.candidates(module, feed, frozenset(), 0).groups
    assert [group.name for group in groups] == ["deep"] or [group.name for group in groups] == ["make"]
    return module, groups


def vectors(module, of=lambda parameter: parameter.detach()):
    """Write out what belongs to each channel: all weights that make it, pass it on and read it."""
    make, deep, read = (of(layer.weight).double() for layer in (module.make, module.deep, module.read))
    width = make.shape[0]
    return [torch.cat([make[c].flatten(), deep[c].flatten(), read[:, c].flatten()]).numpy() for c in range(width)]


def relative(values):
    return np.array(values) / np.mean(values)


def score(method, module, groups, evidence=None, seed=0):
    return np.array(importance.scores(method, module, groups, evidence, seed)[0])


@FEW
@given(width=st.integers(2, 9), seed=st.integers(0, 99))
def test_measures_of_weights_equal_their_formulas(width, seed):
    module, groups = chain(width, seed)
    each = vectors(module)
    energy = np.array([(v**2).sum() for v in each])
    distances = [sum(np.linalg.norm(one - other) for other in each) for one in each]
    expected = {
        "l1": relative([np.abs(v).sum() for v in each]),
        "l2": relative(np.sqrt(energy)),
        "fpgm": relative(distances),
        "lamp": [width * e / energy[energy >= e].sum() for e in energy],
        "bn_scale": module.norm.weight.detach().double().abs().numpy(),
    }
    for method, wanted in expected.items():
        assert score(method, module, groups) == pytest.approx(wanted, rel=1e-6), method


def judged(module, rows, frozen=False):
    """Give rows in batches that do not end where chunks do, and a loss."""
    x = torch.randn(rows, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    parts = [{"x": x[: CHUNK + 3]}, {"x": x[CHUNK + 3 :]}]
    chunks = [part["x"][at : at + CHUNK] for part in parts for at in range(0, len(part["x"]), CHUNK)]
    return Evidence(parts, lambda net, batch: net(batch["x"]).square().sum()), chunks


@FEW
@given(width=st.integers(2, 7), seed=st.integers(0, 99))
def test_measures_of_the_loss_equal_their_formulas(width, seed):
    module, groups = chain(width, seed)
    evidence, chunks = judged(module, 2 * CHUNK)
    exact = copy.deepcopy(module).double()
    slopes, squares = np.zeros(width), [0.0] * width
    for rows in chunks:
        exact.zero_grad()
        exact(rows.double()).square().sum().backward()
        product = exact.read.weight * exact.read.weight.grad
        slopes += product.detach().sum((0, 2, 3)).numpy() ** 2 / len(chunks)
        squares = [s + g**2 / len(chunks) for s, g in zip(squares, vectors(exact, lambda p: p.grad), strict=True)]
    curvature = [(w**2 * g).sum() / 2 for w, g in zip(vectors(exact), squares, strict=True)]
    # A channel that matters nothing differs by rounding alone.
    assert score("taylor", module, groups, evidence) == pytest.approx(slopes, rel=1e-3, abs=1e-5 * slopes.max())
    assert score("fisher", module, groups, evidence) == pytest.approx(curvature, rel=1e-3, abs=1e-5 * max(curvature))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_chance_is_the_same_for_the_same_seed():
    module, groups = chain(8)
    one, same, other = (score("random", module, groups, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert not np.allclose(one, other)


def test_equal_channels_share_their_energy_in_the_order_they_have():
    module, groups = chain(4)
    for layer in (module.make, module.deep, module.read):
        nn.init.ones_(layer.weight)
    assert score("lamp", module, groups) == pytest.approx([1, 4 / 3, 2, 4])
    assert score("fpgm", module, groups) == pytest.approx([0] * 4)
    for layer in (module.make, module.deep, module.read):
        nn.init.zeros_(layer.weight)
    assert all((score(method, module, groups) == 0).all() for method in ("l1", "l2", "lamp", "fpgm"))


LAYERS = {
    "linear": lambda groups: nn.Linear(4 * groups, 6 * groups, bias=False),
    "convolution": lambda groups: nn.Conv2d(4 * groups, 6 * groups, 3, padding=1, groups=groups, bias=False),
    "in time": lambda groups: nn.Conv1d(4 * groups, 6 * groups, 3, padding=1, groups=groups, bias=False),
    "transposed": lambda groups: nn.ConvTranspose2d(4 * groups, 6 * groups, 3, padding=1, groups=groups, bias=False),
}


def touched(layer, channel, side):
    """Find by differentiation which weights read an input channel, or make an output channel."""
    width = layer.weight.shape[1] if isinstance(layer, nn.Linear) else layer.in_channels
    spatial = {nn.Linear: (), nn.Conv1d: (5,)}.get(type(layer), (5, 5))
    x = torch.zeros(1, width, *spatial)
    x[:, slice(None) if side == "out" else channel] = torch.rand(1)
    out = layer(x)
    (gradient,) = torch.autograd.grad((out[:, channel] if side == "out" else out).sum(), layer.weight)
    return gradient != 0


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", ["in", "out"])
def test_the_weights_of_a_channel_are_those_that_read_or_make_it(kind, groups, side):
    layer = LAYERS[kind](1 if kind == "linear" else groups)
    module = nn.Sequential(layer)
    width = (4 if side == "in" else 6) * (1 if kind == "linear" else groups)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0)).tolist()
    member = Member("0", side, tuple((place,) for place in order))
    group = Group("0", (member,), tuple((root,) for root in range(width)), (tuple(range(width)),))
    (part,) = channels.slices(module, group, [side])
    values = torch.rand_like(layer.weight)
    masks = [touched(layer, place, side) for place in order]
    assert part.summed(values).tolist() == pytest.approx([float(values[mask].double().sum()) for mask in masks])
    rows = part.rows(values)
    assert [sorted(row.tolist()) for row in rows] == [pytest.approx(sorted(values[mask].tolist())) for mask in masks]


def test_blocks_of_unequal_size_are_compared_with_zeros():
    layer = nn.Linear(5, 2, bias=False)
    member = Member("0", "in", ((0, 3), (1,), (2, 4)))
    group = Group("0", (member,), ((0,), (1,), (2,)), ((0, 1, 2),))
    (part,) = channels.slices(nn.Sequential(layer), group, ["in"])
    columns = layer.weight.detach().T
    wanted = [[*columns[0], *columns[3]], [*columns[1], 0, 0], [*columns[2], *columns[4]]]
    assert part.rows(layer.weight.detach()).tolist() == [pytest.approx([float(x) for x in row]) for row in wanted]


class Rooted(nn.Module):
    """A loss whose slope at zero is infinite though it is finite itself."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x).relu() * 0).square().sum(1).sqrt() + self.two.bias.sum() * 0


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_numbers_that_are_none_are_refused_with_their_rows_or_layer(method):
    module, groups = chain(4)
    x = torch.randn(2 * CHUNK, 2, 5, 5)
    x[CHUNK + 1] = math.nan
    evidence = Evidence([{"x": x}], lambda net, batch: net(batch["x"]).sum())
    with pytest.raises(StageError, match=f"is nan on the rows {CHUNK + 1} to {2 * CHUNK}"):
        score(method, module, groups, evidence)
    rooted = Rooted().eval()
    nn.init.zeros_(rooted.two.bias)
    feed = {"x": torch.randn(2, 4)}
    found = sound.candidates(rooted, feed, frozenset(), 0).groups
    with pytest.raises(StageError, match="gradients at 'one' are not finite"):
        score(method, rooted, found, Evidence([feed], lambda net, batch: net(batch["x"]).sum()))
    with pytest.raises(StageError, match="hold no rows"):
        score(method, module, groups, Evidence([], lambda net, batch: net(batch["x"]).sum()))
