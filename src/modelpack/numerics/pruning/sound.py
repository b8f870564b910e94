"""Which groups mean what they seem to: each must be removable, and removing it must equal ignoring it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError, listed
from modelpack.numerics.pruning import groups as grouping
from modelpack.numerics.pruning import plan
from modelpack.numerics.pruning.plan import Removal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from modelpack.numerics.pruning.groups import Group


@dataclass(frozen=True)
class Candidates:
    """What may be removed, and why other layers are left alone.

    Attributes:
        groups: Sound ones; at least one.
        left: Layer → why its channels are left alone.
    """

    groups: tuple[Group, ...]
    left: Mapping[str, str]


def candidates(module: nn.Module, feed: Mapping[str, Tensor], keep: frozenset[str], seed: int) -> Candidates:
    """Find the groups of a module, and keep those whose removal means what it should.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass.
        keep: Paths of modules that must not change.
        seed: Of the units that trials remove.

    Raises:
        StageError: When the module cannot be traced, or no group is sound.
    """
    found = grouping.find(module, feed, keep)
    trial = _Trial(plan.stripped(module, seed), feed, seed)
    sound, left = _tried(trial, found.groups, module)
    left = {**found.left, **left}
    if not sound:
        told = "; ".join(f"{listed(names)}: {reason}" for reason, names in list(grouping.reasons(left).items())[:5])
        why = told or ("nothing that could shrink reads them" if left else "it has no layers whose channels could be")
        then = "shorten keep" if keep else "leave whole layers out by `depth`, or take `low_rank` or `quantize`"
        raise StageError(f"no channels of this model can be removed ({why})", then=then)
    return Candidates(tuple(sound), left)


@dataclass(frozen=True)
class _Trial:
    """Removes units of some groups together from a copy of a `stripped` module."""

    bare: nn.Module
    feed: Mapping[str, Tensor]
    seed: int

    def flaw(self, groups: Sequence[Group]) -> str:
        """Take one unit of each, then a random share: a regular choice could hide that indices are mixed up."""
        generator = torch.Generator().manual_seed(self.seed)
        for share in (0.0, 0.5):
            removals = [self._some(group, share, generator) for group in groups]
            reason = plan.flaw(self.bare, removals, self.feed)
            if reason:
                return reason
        return ""

    @staticmethod
    def _some(group: Group, most: float, generator: torch.Generator) -> Removal:
        # Blocks of a unit are matched by chance too: by their order they might belong together where they need not.
        units = group.ranked(torch.rand(len(group.blocks), generator=generator).tolist())
        # Shares differ from group to group, so that two that must shrink by the same number do not pass by chance.
        share = most * float(torch.rand(1, generator=generator))
        order = torch.randperm(len(units), generator=generator).tolist()
        chosen = order[: max(1, round(share * len(units)))]
        return Removal(group, tuple(root for unit in chosen for root in units[unit][1]))


def _tried(trial: _Trial, groups: Sequence[Group], module: nn.Module) -> tuple[list[Group], dict[str, str]]:
    """Try all groups together, which is nearly always sound; else halves of them, down to the unsound ones."""
    for together in (list(groups), [_counted(group, module) for group in groups]):
        if not together or not trial.flaw(together):
            return together, {}
    if len(groups) == 1:
        return [], dict.fromkeys(groups[0].makers, trial.flaw(groups))
    middle = len(groups) // 2
    halves = [_tried(trial, half, module) for half in (groups[:middle], groups[middle:])]
    return [group for sound, _ in halves for group in sound], {**halves[0][1], **halves[1][1]}


def _counted(group: Group, module: nn.Module) -> Group:
    return grouping.with_width_counters(group, module) if group.heads else group
