"""Whatever a network is made of, a pruned one gives what the whole one gives when it ignores what was pruned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import nets
from modelpack.numerics import models, pruning
from modelpack.numerics.pruning import choice, plan, sound, targets
from modelpack.stages.export import export
from modelpack.stages.prune import prune
from support import run_stage
from test_models import imported

torch.set_num_threads(1)


class Squeeze(nn.Module):
    """Squeeze and excitation: every channel is scaled by what all of them say."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, max(2, width // 2), 1), nn.Conv2d(max(2, width // 2), width, 1)

    def forward(self, x):
        return x * self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Beside(nn.Module):
    """What a branch makes, joined to its input by adding or by concatenating."""

    def __init__(self, branch, *, add):
        super().__init__()
        self.branch, self.add = branch, add

    def forward(self, x):
        return x + self.branch(x) if self.add else torch.cat([x, self.branch(x)], 1)


class Shared(nn.Module):
    """One layer, used twice."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.layer(functional.relu(self.layer(x)))


class Net(nn.Module):
    def __init__(self, blocks, width, *, pooled):
        super().__init__()
        self.blocks, self.pooled = nn.Sequential(*blocks), pooled
        self.hidden = nn.Linear(width * (1 if pooled else 16), 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.blocks(x)
        x = x.mean((2, 3)) if self.pooled else x.flatten(1)
        return self.head(functional.relu(self.hidden(x)))


def convolution(width, out, groups=1):
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, groups=groups), nn.BatchNorm2d(out), nn.ReLU())


KINDS = ["plain", "residual", "dense", "depthwise", "grouped", "squeeze", "shared", "transposed", "normalised"]


@st.composite
def networks(draw):
    """Draw a network of a few blocks of any kind, and the width of its channels at each."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    width = draw(st.sampled_from([4, 6, 8]))
    blocks = [convolution(3, width)]
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)):
        more = draw(st.sampled_from([4, 6, 8]))
        parts = 2
        made, width = {
            "plain": lambda: (convolution(width, more), more),  # noqa: B023  called at once
            "residual": lambda: (Beside(convolution(width, width), add=True), width),  # noqa: B023
            "dense": lambda: (Beside(convolution(width, more), add=False), width + more),  # noqa: B023
            "depthwise": lambda: (convolution(width, width, width), width),  # noqa: B023
            "grouped": lambda: (convolution(width, width, parts), width),  # noqa: B023
            "squeeze": lambda: (Squeeze(width), width),  # noqa: B023
            "shared": lambda: (Shared(width), width),  # noqa: B023
            "transposed": lambda: (nn.ConvTranspose2d(width, more, 3, padding=1), more),  # noqa: B023
            "normalised": lambda: (nn.GroupNorm(parts, width), width),  # noqa: B023
        }[kind]()
        blocks.append(made)
    net = Net(blocks, width, pooled=draw(st.booleans())).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net


FEED = {"x": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks(), data=st.data())
def test_removing_equals_ignoring_and_is_counted_as_expected(net, data):
    found = sound.candidates(net, FEED, frozenset(), 0)
    assert "hidden" in {group.name for group in found.groups}
    counts = tuple(data.draw(st.integers(0, group.units - 1)) for group in found.groups)
    flat = pruning.targets.of_params(0.5).opened(net, FEED, found.groups)
    ranking = choice.rank(net, found.groups, pruning.Worth("random", seed=1), flat)
    removals = ranking.removals(counts)
    assert plan.flaw(plan.stripped(net, 0), removals, FEED) == ""
    smaller = plan.apply(net, removals)
    assert smaller(**FEED).shape == (2, 3)
    for make in targets.KINDS.values():
        meter = make(0.5).opened(net, FEED, found.groups)
        assert meter.estimate(counts) == pytest.approx(meter.measure(smaller), rel=1e-9)


def test_every_maker_of_concatenated_channels_is_a_group_of_its_own(tmp_path):
    source = imported(tmp_path, "dense", nets.IMAGE)
    module = models.load(source)
    feed = {"image": torch.randn(2, 1, 16, 16)}
    found = sound.candidates(module, feed, frozenset(), 0)
    assert {group.name for group in found.groups} == {"stem", "layers.0", "layers.1", "layers.2", "hidden"}
    pruned = run_stage(tmp_path, prune, {"params": 0.4, "importance": "lamp"}, model=source)
    smaller = models.load(pruned)
    made = [smaller.stem, *smaller.layers]
    assert smaller.hidden.in_features == 16 * sum(layer.out_channels for layer in made) < 16 * 32
    assert [norm.num_features for norm in smaller.norms] == [
        sum(x.out_channels for x in made[: n + 1]) for n in range(3)
    ]
    graph = run_stage(tmp_path, export, {}, model=pruned)  # compares onnxruntime's outputs with torch's
    assert graph.model_bytes < 0.5 * source.model_bytes


class Late(nn.Module):
    """Concatenates what was flattened before: which features are whose, the trace cannot say."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 1)
        self.hidden, self.head = nn.Linear(20 * 16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.cat([self.one(x).flatten(1), self.two(x).flatten(1)], 1)
        return self.head(functional.relu(self.hidden(functional.relu(x))))


class Halves(nn.Module):
    """Cuts channels into fixed halves, of which one goes a way of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.way = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.join, self.head = nn.Conv2d(24, 12, 1), nn.Linear(12, 3)

    def forward(self, x):
        one, two = self.stem(x)[:, :8], self.stem(x)[:, 8:]
        x = torch.cat([one, two, self.way(two)], 1)
        return self.head(functional.relu(self.join(x)).mean((2, 3)))


class Gated(nn.Module):
    """A gated unit as one call, behind which there are half as many channels as the trace believes."""

    def __init__(self):
        super().__init__()
        self.wide, self.join, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(functional.relu(self.join(functional.glu(self.wide(x), 1))).mean((2, 3)))


class Repeated(nn.Module):
    """Heads of which several ask the same key: the trace loses sight of what it repeats."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 16), nn.Linear(4, 8), nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)[..., :1] * torch.ones(4)
        query, key = (part.unflatten(2, (-1, 4)).transpose(1, 2) for part in (self.query(x), self.key(x)))
        key = key.repeat_interleave(2, 1)
        mixed = ((query @ key.transpose(-1, -2)).softmax(-1) @ key).transpose(1, 2).flatten(2)
        return self.head(functional.relu(self.out(mixed)).mean(1))


@pytest.mark.parametrize(
    ("kind", "free"), [(Late, {"hidden"}), (Halves, {"join"}), (Gated, {"join"}), (Repeated, {"out"})]
)
def test_what_cannot_be_followed_is_left_alone_with_a_reason(kind, free):
    torch.manual_seed(0)
    found = sound.candidates(kind().eval(), FEED, frozenset(), 0)
    names = {group.name for group in found.groups}
    assert free <= names
    for group in found.groups:  # whatever is found has been tried
        chosen = plan.Removal(group, group.ranked([0.0] * len(group.blocks))[0][1])
        module = kind().eval()
        assert plan.flaw(plan.stripped(module, 0), [chosen], FEED) == ""
    assert set(found.left) - {"head"}
    assert all(found.left.values())


def test_a_depthwise_layer_that_reads_the_input_is_left_alone_by_its_name():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ).eval()
    found = sound.candidates(net, {"input": FEED["x"]}, frozenset(), 0)
    assert [group.name for group in found.groups] == ["1"]
    assert found.left["0"].startswith("the model fails without some of them")


class Headed(nn.Module):
    """Attention that keeps the width of all heads beside their number, as BERT does."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        def split(y):
            return y.view(*y.shape[:2], self.num_heads, self.head_size).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mixed = ((query @ key.transpose(-1, -2)).softmax(-1) @ value).transpose(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], self.all_head_size))


class Mixed(nn.Module):
    """Attention of two habits between layers that can and that cannot be pruned: no one trial suits them all."""

    def __init__(self):
        super().__init__()
        self.inner = nets.Attention(16, 4)
        self.headed = Headed(16, 4)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16)
        self.fixed, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = x + self.headed(x + self.inner(x, torch.ones(x.shape[:2])))
        x = x + self.second(functional.relu(self.first(x)))
        x = self.fixed(x[:, 0]).view(len(x), 4, 4).transpose(1, 2).reshape(len(x), 16)
        return self.head(functional.relu(x))


def test_sound_groups_are_found_among_unsound_ones():
    torch.manual_seed(0)
    module, feed = Mixed().eval(), {"x": torch.randn(2, 5, 16)}
    found = sound.candidates(module, feed, frozenset(), 0)
    heads = {group.name.partition(".")[0]: {c.name for c in group.counters} for group in found.groups if group.heads}
    assert heads == {"inner": {"num_heads"}, "headed": {"num_heads", "all_head_size"}}
    assert "first" in {group.name for group in found.groups}
    assert "fixed" in found.left
    pruned = pruning.prune(module, feed, targets.of_params(0.7), pruning.Worth("l1"))
    assert pruned.module.headed.all_head_size == pruned.module.headed.query.out_features
    assert pruned.module(**feed).shape == (2, 3)
