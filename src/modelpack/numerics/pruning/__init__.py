"""Structured pruning: whole channels, hidden units and attention heads, removed from every layer that shares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import StageError, listed
from modelpack.numerics import matrices
from modelpack.numerics.pruning import choice, evidence, plan, refit, sound, targets
from modelpack.numerics.pruning.choice import Worth
from modelpack.numerics.pruning.groups import reasons
from modelpack.numerics.pruning.importance import Evidence
from modelpack.numerics.pruning.result import Pruned, changes
from modelpack.numerics.pruning.rounding import Rounding
from modelpack.numerics.pruning.targets import Meter, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from modelpack.numerics.pruning.choice import Choice, Ranking
    from modelpack.numerics.pruning.refit import Fit


def prune(
    module: nn.Module,
    feed: Mapping[str, Tensor],
    target: Target,
    worth: Worth,
    *,
    keep: Iterable[str] = (),
    rounding: Rounding = Rounding(),  # noqa: B008  frozen
    seed: int = 0,
    study: Callable[[nn.Module, Ranking], object] = lambda _module, _ranking: None,
    fit: Fit = refit.nothing,
) -> Pruned:
    """Remove the least important channels until what the target counts has become small enough.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device: dependencies, soundness and multiply-accumulates
            are found with it.
        target: What shall become smaller, and how much of it stays.
        worth: How channels are judged.
        keep: Glob patterns of module paths that must not change.
        rounding: What the channels that stay in a layer are a multiple of.
        seed: Of the soundness check.
        study: Told the order in which units would go, before any does.
        fit: Prepares a copy for the loss of the chosen channels, as those of `refit` do.

    Raises:
        StageError: When nothing may be removed, or the target cannot be met; the nearest fraction is named.
    """
    keep = tuple(keep)
    found = sound.candidates(module, feed, kept(module, keep), seed)
    meter = target.opened(module, feed, found.groups)
    ranking = choice.rank(module, found.groups, worth, meter)
    study(module, ranking)
    chosen = choice.choose(module, ranking, target, meter, rounding)
    if not target.met(chosen.fraction):
        raise _missed(target, chosen, found.left, coarse=rounding.width > 1 and not rounding.adapts, kept=bool(keep))
    flaw = plan.flaw(plan.stripped(module, seed), chosen.removals, feed)
    if flaw:
        raise StageError(f"removing the chosen channels together is not sound: {flaw}", then="name some in keep")
    fitted = fit(module, chosen.removals)
    smaller = plan.apply(fitted.module, chosen.removals)
    heads = [
        (len(removal.roots) // removal.group.unit_width, removal.group.units)
        for removal in chosen.removals
        if removal.group.heads
    ]
    return Pruned(
        module=smaller,
        fraction=chosen.fraction,
        layers=changes(module, smaller),
        left=found.left,
        heads=(sum(gone for gone, _ in heads), sum(whole for _, whole in heads)),
        rounding={group.name: step for group, step in zip(found.groups, chosen.steps, strict=True)},
        refitted=fitted.layers,
        unfitted=fitted.left,
    )


def kept(module: nn.Module, patterns: Iterable[str]) -> frozenset[str]:
    """List the modules that patterns name, and all that lies inside them.

    Raises:
        StageError: For a pattern that matches nothing, with the nearest path.
    """
    return frozenset(matrices.named(module, patterns, "keep"))


def _missed(target: Target, chosen: Choice, left: Mapping[str, str], *, coarse: bool, kept: bool) -> StageError:
    ways = [f"set {target.name}: {chosen.fraction:.3g}"]
    ways += ["lower round_to"] if coarse else []
    ways += ["shorten keep"] if kept else []
    alone = [f"; {listed(names)} left alone: {reason}" for reason, names in reasons(left).items()]
    return StageError(
        f"cannot keep {100 * target.keep:.3g}% of the {target.words}; "
        f"the nearest possible is {100 * chosen.fraction:.3g}%",
        then=f"{' or '.join(ways)}{''.join(alone[:5])}",
    )


__all__ = [
    "Evidence",
    "Meter",
    "Pruned",
    "Rounding",
    "Target",
    "Worth",
    "evidence",
    "kept",
    "prune",
    "reasons",
    "refit",
    "targets",
]
