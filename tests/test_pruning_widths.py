"""Which widths layers get: blocks of kernels stay full as far as the target allows it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import nets
from modelpack.numerics import pruning
from modelpack.numerics.pruning import Rounding, Worth, rounding, targets
from modelpack.stages.prune import PruneConfig, prune
from support import run_stage
from test_models import imported
from test_pruning_choice import group

torch.set_num_threads(1)


def test_rounding_becomes_finer_in_narrow_groups_first():
    groups = [group(str(width), width) for width in (512, 64, 32, 24, 16, 3)]
    heads = group("h", 16, unit=4, heads=True)
    found = Rounding(16, adapts=True).levels([*groups, heads])
    assert [steps[-1] for steps in found] == [1] * len(found)
    assert [steps[:-1] for steps in found] == [
        (16, 16, 16, 16, 16, 2),
        (16, 16, 16, 8, 8, 1),
        (16, 16, 8, 4, 4, 1),
        (16, 8, 4, 2, 2, 1),
        (8, 4, 2, 1, 1, 1),
        (4, 2, 1, 1, 1, 1),
        (2, 1, 1, 1, 1, 1),
        (1, 1, 1, 1, 1, 1),
    ]
    assert Rounding(16).levels([*groups, heads]) == [(16, 16, 16, 16, 16, 16, 1)]
    assert Rounding().levels(groups) == [(1,) * 6]


class Chain(nn.Module):
    """Layers one after the other."""

    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((8, *widths)))
        self.head = nn.Linear(widths[-1], 8)

    def forward(self, x):
        for layer in self.layers:
            x = functional.relu(layer(x))
        return self.head(x)

    def widths(self):
        return [layer.out_features for layer in self.layers]


def chained(keep, *widths, rounding=Rounding(16, adapts=True)):  # noqa: B008  frozen
    torch.manual_seed(0)
    made = pruning.prune(Chain(*widths), {"x": torch.rand(2, 8)}, targets.of_macs(keep), Worth("l2"), rounding=rounding)
    assert made.fraction == pytest.approx(keep, rel=0.02)
    return made.module.widths()


def test_blocks_of_kernels_stay_full_where_the_target_allows_it():
    assert not [width for width in chained(0.5, 64, 96, 64, 128) if width % 16]
    assert not [width for width in chained(0.72, 128, 128, 128) if width % 16]


@pytest.mark.parametrize("keep", [0.43, 0.52, 0.61, 0.9])
def test_one_layer_alone_is_finer_where_the_target_needs_it(keep):
    found = chained(keep, 48, 64, 64)
    assert len([width for width in found if width % 16]) <= 1


def test_layers_too_narrow_for_a_block_go_by_a_part_of_it():
    assert chained(0.35, 64, 16) == [32, 8]
    assert all(width < 12 for width in chained(0.3, 12, 12, 12))


@given(units=st.integers(1, 200), unit=st.integers(1, 4), step=st.sampled_from([1, 2, 4, 8, 16]), data=st.data())
def test_allowed_widths_are_multiples_and_leave_something(units, unit, step, data):
    removable = data.draw(st.integers(0, units))
    least = data.draw(st.floats(0, 1))
    found = rounding.allowed(group("a", units, unit=unit), step, removable, least)
    assert found[0] == 0
    assert list(found) == sorted(set(found))
    for lost in found[1:]:
        assert units - lost > 0
        assert lost <= removable
        assert (units - lost) * unit % step == 0
        assert units - lost >= least * units


def test_widths_are_those_of_kernels_on_every_machine_and_recorded(tmp_path):
    assert rounding.BLOCK % 8 == 0
    assert not list(prune.assumes(PruneConfig(macs=0.5), "cpu"))
    assert [item.name for item in prune.assumes(PruneConfig(latency=0.5), "cpu")] == ["machine"]
    pruned = run_stage(tmp_path, prune, {"macs": 0.6}, model=imported(tmp_path, "cnn", nets.IMAGE))
    steps = pruned.manifest.record["results"]["rounding"]
    assert set(steps.values()) <= {1, 2, 4, 8, 16}
    assert max(steps.values()) == rounding.BLOCK
