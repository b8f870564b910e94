"""Which units go: where importances are compared, which widths are allowed, what is met, and what a refusal says."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.nn import functional

import nets
from modelpack.errors import StageError
from modelpack.numerics import macs, models, pruning
from modelpack.numerics.pruning import Evidence, Rounding, Worth, rounding, scope, targets
from modelpack.numerics.pruning.groups import Group
from modelpack.numerics.pruning.search import Search
from modelpack.numerics.pruning.surgery import Member
from modelpack.stages.prune import prune
from support import run_stage
from test_models import imported

torch.set_num_threads(1)
IMAGE = {"image": torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))}


def group(name, width, sides=("out", "in"), unit=1, *, heads=False):
    """Give a group whose members are layers of a module in `modules`."""
    places = tuple((place,) for place in range(width * unit))
    members = tuple(Member(f"{name}{number}", side, places) for number, side in enumerate(sides))
    blocks = tuple(tuple(range(at * unit, (at + 1) * unit)) for at in range(width))
    return Group(name, members, blocks, (tuple(range(width)),), heads=heads)


def modules(**kinds):
    """Give a module that holds two layers of each name."""
    holder = nn.Module()
    for name, kind in kinds.items():
        for number in range(2):
            holder.add_module(f"{name}{number}", kind())
    return holder


scores_of = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=12).map(sorted)


@given(first=scores_of, second=scores_of, third=scores_of)
def test_each_class_loses_the_same_share(first, second, third):
    holder = modules(a=lambda: nn.Linear(2, 2), b=lambda: nn.Linear(9, 9), c=lambda: nn.Conv2d(2, 2, 1))
    scores = [first, second, third]
    groups = [group(name, len(values)) for name, values in zip("abc", scores, strict=True)]
    assert scope.keys("global", holder, groups, scores) == scores
    for kind, classes in (("layer", [[0], [1], [2]]), ("isomorphic", [[0, 1], [2]])):
        keys = scope.keys(kind, holder, groups, scores)
        for numbers in classes:
            pooled = sorted(key for number in numbers for key in keys[number])
            assert pooled == pytest.approx([(rank + 0.5) / len(pooled) for rank in range(len(pooled))])
            ranked = sorted((score, key) for n in numbers for score, key in zip(scores[n], keys[n], strict=True))
            for (low, one), (high, other) in itertools.pairwise(ranked):
                assert low == high or one < other  # a more important unit never goes before a less important one


def test_topology_tells_kinds_of_layers_sides_and_kernels_apart():
    holder = modules(
        a=lambda: nn.Conv2d(4, 4, 3),
        b=lambda: nn.Conv2d(8, 8, 3),
        c=lambda: nn.Conv2d(4, 4, 1),
        d=lambda: nn.Linear(4, 4),
    )
    found = dict(holder.named_modules())
    one, same, kernel, kind = (scope.topology(group(name, 4), found) for name in "abcd")
    assert one == same
    assert len({one, kernel, kind, scope.topology(group("a", 4, ("out", "out")), found)}) == 4


@given(
    keys=st.lists(scores_of, min_size=1, max_size=3),
    costs=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    target=st.floats(0.05, 1),
)
@example(keys=[[0.0] * 3, [0.0] * 3], costs=[1.75, 4.0, 1.0], target=0.5)
def test_a_search_ends_where_no_single_step_comes_nearer(keys, costs, target):
    allowed = [tuple(range(len(values))) for values in keys]
    whole = sum(len(values) * cost for values, cost in zip(keys, costs, strict=False))

    def left(counts):
        return 1 - sum(count * cost for count, cost in zip(counts, costs, strict=False)) / whole

    counts = Search(keys, allowed, left).run(target, 0.02)
    assert all(count in options for count, options in zip(counts, allowed, strict=True))
    if abs(left(counts) - target) > 0.02 * target:
        for number in range(len(keys)):
            for step in (-1, 1):
                other = (*counts[:number], counts[number] + step, *counts[number + 1 :])
                if other[number] in allowed[number]:
                    assert abs(left(other) - target) >= abs(left(counts) - target) - 1e-12


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(list(targets.KINDS)),
    kind=st.sampled_from(["global", "layer", "isomorphic"]),
    width=st.sampled_from([8, 16, 24]),
    keep=st.floats(0.3, 0.95),
)
def test_targets_are_met_on_blocks_of_channels(name, kind, width, keep):
    torch.manual_seed(0)
    module = nets.cnn(width=width).eval()
    target = targets.KINDS[name](keep)
    pruned = pruning.prune(module, IMAGE, target, Worth("l2", kind), rounding=Rounding(16, adapts=True))
    assert pruned.fraction == pytest.approx(keep, rel=0.02)
    count = {"macs": lambda net: macs.count(net, IMAGE), "params": models.parameter_count, "size": stored}[name]
    assert pruned.fraction == pytest.approx(count(pruned.module) / count(module))
    for path, step in pruned.rounding.items():
        before, after = (net.get_submodule(path) for net in (module, pruned.module))
        width_of = "out_features" if isinstance(before, nn.Linear) else "out_channels"
        assert getattr(after, width_of) % step == 0 or getattr(after, width_of) == getattr(before, width_of)


@pytest.mark.parametrize("name", list(targets.KINDS))
def test_what_is_pruned_again_keeps_a_fraction_of_the_whole(name):
    torch.manual_seed(0)
    module = nets.cnn(width=16).eval()
    target = targets.KINDS[name](0.3)
    first = pruning.prune(module, IMAGE, replace(target, keep=0.6), Worth("l2"))
    second = pruning.prune(first.module, IMAGE, replace(target, whole=module), Worth("l2"))
    assert second.fraction == pytest.approx(0.3, rel=0.02)
    count = {"macs": lambda net: macs.count(net, IMAGE), "params": models.parameter_count, "size": stored}[name]
    assert second.fraction == pytest.approx(count(second.module) / count(module))


def stored(module):
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def test_a_choice_costs_few_passes_however_many_groups_there_are(monkeypatch):
    passes = []
    forward = nets.Cnn.forward
    monkeypatch.setattr(nets.Cnn, "forward", lambda self, image: passes.append(1) or forward(self, image))
    pruned = pruning.prune(nets.cnn().eval(), IMAGE, targets.of_macs(0.5), Worth("l2"))
    assert len(pruned.rounding) == 5  # groups: once each was tried alone, four passes a time
    assert len(passes) <= 10


def test_no_group_becomes_a_bottleneck_unless_the_target_needs_it():
    torch.manual_seed(0)
    module = nets.cnn(width=32).eval()
    with torch.no_grad():  # worth far less than any other
        module.block1.expand.weight.mul_(1e-3)
        module.block1.depthwise.weight.mul_(1e-3)
        module.block1.project.weight.mul_(1e-3)

    def left(share, keep=()):
        judged = Evidence([IMAGE], lambda net, batch: net(**batch).square().sum())
        worth = Worth("taylor", evidence=judged)
        pruned = pruning.prune(module, IMAGE, targets.of_macs(share), worth, keep=keep)
        return pruned.module.block1.expand.out_channels / 128

    for share in (0.4, 0.5):
        assert left(share) == pytest.approx(rounding.welcome_share(share), abs=1 / 128)
    assert left(0.75, ["block2", "block3", "stem", "down"]) < rounding.welcome_share(0.75)


def test_size_is_that_of_the_file(tmp_path):
    source = imported(tmp_path, "cnn", nets.IMAGE)
    pruned = run_stage(tmp_path, prune, {"size": 0.5}, model=source)

    def tensors(artifact):
        with safe_open(artifact.file("weights.safetensors"), "np") as file:
            return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  no mapping

    assert tensors(pruned) / tensors(source) == pytest.approx(0.5, rel=0.02)


@settings(max_examples=8, deadline=None)
@given(keep=st.floats(0.02, 0.9))
def test_a_refusal_names_a_fraction_that_can_be_had(keep):
    torch.manual_seed(0)
    module = nets.cnn(width=4).eval()
    settings = {"keep": ["block1", "block3"], "rounding": Rounding(4)}
    try:
        pruning.prune(module, IMAGE, targets.of_params(keep), Worth("l2"), **settings)
    except StageError as error:
        refusal = error.then
    else:
        return
    assert "lower round_to or shorten keep" in refusal
    named = float(re.search(r"set params: ([\d.]+)", refusal)[1])
    found = pruning.prune(module, IMAGE, targets.of_params(named), Worth("l2"), **settings)
    assert found.fraction == pytest.approx(named, abs=6e-4)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 4)


class Copied(Two):
    def forward(self, x):
        return self.two(torch.from_numpy(self.one(x).numpy()))


class Frozen(Two):
    @torch.no_grad()
    def forward(self, x):
        return self.two(self.one(x))


class Cut(Two):
    def forward(self, x):
        return self.two(self.one(x).detach())


class Folded(Two):
    def forward(self, x):
        return self.two(functional.relu(self.one(x)).view(len(x), 4, 4).transpose(1, 2).reshape(len(x), 16))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            Copied,
            r"cannot be traced: RuntimeError: Can't call numpy\(\).* at test_pruning_choice.py:\d+: return self.two\(",
        ),
        (Frozen, r"outputs \(output\) do not follow from its weights by gradients"),
        (Cut, r"one: no gradient comes to it: .* detach\(\)"),
        (Folded, r"one: the model fails without some of them \(test_pruning_choice.py:\d+: return self.two\("),
    ],
)
def test_a_refusal_says_where_in_the_model_the_trouble_is(kind, says):
    with pytest.raises(StageError, match=says):
        pruning.prune(kind().eval(), {"x": torch.randn(2, 16)}, targets.of_macs(0.5), Worth("l2"))
