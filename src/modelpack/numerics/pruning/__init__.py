"""Structured pruning: whole channels, hidden units and attention heads, removed from every layer that shares them."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import macs, models
from modelpack.numerics.calling import call
from modelpack.numerics.distillation import losses
from modelpack.numerics.distillation.losses import Goal
from modelpack.numerics.pruning import groups as grouping
from modelpack.numerics.pruning import importance, plan
from modelpack.numerics.pruning.plan import Removal
from modelpack.numerics.pruning.search import Counts, Search
from modelpack.numerics.pruning.surgery import MATRICES
from modelpack.numerics.training.batches import TRUTH, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.pruning.importance import Loss
    from modelpack.numerics.training.batches import Rows

TOLERANCE = 0.02
"""How far from the target the result may be, relative to the target."""


@dataclass(frozen=True)
class Pruned:
    """A smaller model and how it came about.

    Attributes:
        module: The model without the removed channels.
        macs: Fraction of the multiply-accumulates that stayed.
        layers: By changed layer: path, type, channels in and out before and after.
        left: Layer → why its channels were left alone.
        heads: Removed and all attention heads.
    """

    module: nn.Module
    macs: float
    layers: list[dict[str, Any]]
    left: Mapping[str, str]
    heads: tuple[int, int]

    def by_reason(self) -> dict[str, list[str]]:
        """Group the layers left alone by their reason; a model's last layers, which nothing reads, are left out."""
        grouped: dict[str, list[str]] = {}
        for layer, reason in self.left.items():
            if reason != grouping.UNREAD:
                grouped.setdefault(reason, []).append(layer)
        return grouped


@dataclass(frozen=True)
class Taylor:
    """What importance `taylor` needs: batches of tensors, and the loss whose change is judged."""

    batches: Iterable[Mapping[str, Tensor]]
    loss: Loss


def taylor_from(data: Rows, limit: int, device: str | torch.device, seed: int) -> tuple[Taylor, str]:
    """Prepare importance `taylor`: the task loss where the data bring a target, else the change of the outputs.

    Args:
        data: Inputs and, where its target is set, the truth.
        limit: Rows to read at most.
        device: Where the model is.
        seed: Of the random directions in which outputs are judged.

    Returns:
        What `prune` needs, and in words what it judges.

    Raises:
        StageError: When the data hold no rows, or lack their target.
    """
    directions = torch.Generator().manual_seed(seed)
    _, truth = split(data.labelled(), torch.device("cpu"))
    if data.target is not None and truth is None:
        raise StageError(f"loss task needs the column '{data.target}', which the data lack", then="set target")
    goal = Goal(losses.task_for(truth))

    def batches() -> Iterator[Mapping[str, Tensor]]:
        seen = 0
        for batch in data.picked():
            inputs, labels = split(batch, torch.device(device))
            count = min(limit - seen, max(len(value) for value in inputs.values()))
            taken = {**inputs, **({} if labels is None else {TRUTH: labels})}
            yield {name: value[:count] for name, value in taken.items()}
            seen += count
            if seen >= limit:
                return

    def loss(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        outputs = call(module, {name: value for name, value in batch.items() if name != TRUTH})
        if goal.task == "none":
            return losses.sensitivity(outputs, directions)
        return losses.task_loss(outputs, batch[TRUTH], goal)

    judged = {"none": "the change of the outputs"}
    return Taylor(batches(), loss), judged.get(goal.task, f"the task loss ({goal.task}) on the labels")


def prune(
    module: nn.Module,
    feed: Mapping[str, Tensor],
    *,
    keep_macs: float,
    method: str,
    taylor: Taylor | None = None,
    keep: Iterable[str] = (),
    round_to: int = 1,
    seed: int = 0,
    watch: Callable[[Iterable[Group]], Iterable[Group]] = lambda items: items,
) -> Pruned:
    """Remove the least important channels until a fraction of the multiply-accumulates is left.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device: dependencies, soundness and multiply-accumulates
            are found with it.
        keep_macs: Fraction to keep, 0 < keep_macs ≤ 1.
        method: ``l2``, ``bn_scale`` or ``taylor``.
        taylor: Data and loss for ``taylor``.
        keep: Glob patterns of module paths that must not change.
        round_to: Channels that stay in a layer are a multiple of this.
        seed: Of the soundness check.
        watch: Passes the groups through while they are checked, to show progress.

    Raises:
        StageError: When nothing may be removed, or the fraction cannot be met within 2 %; the nearest one is named.
    """
    found = grouping.find(module, feed, _kept(module, keep))
    sound, left = _sound(module, found, feed, seed, watch)
    if not sound:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        why = reasons or "it has no layers whose channels could be"
        raise StageError(f"no channels of this model can be removed ({why})")
    whole = macs.count_by_module(module, feed)
    scores = _scores(module, sound, method, taylor, whole)
    ranked = [group.ranked(values) for group, values in zip(sound, scores, strict=True)]

    def removals(counts: Counts) -> list[Removal]:
        return [
            Removal(group, tuple(root for _, roots in units[:count] for root in roots))
            for group, units, count in zip(sound, ranked, counts, strict=True)
        ]

    def measure(counts: Counts) -> float:
        return macs.count(plan.apply(module, removals(counts)), feed) / max(1, whole[""])

    search = Search(sound, [[score for score, _ in units] for units in ranked], measure, round_to)
    counts = search.run(keep_macs, TOLERANCE)
    fraction = search.fraction(counts)
    if abs(fraction - keep_macs) > TOLERANCE * keep_macs:
        raise StageError(
            f"cannot keep {keep_macs:.1%} of the multiply-accumulates; the nearest possible is {fraction:.1%}",
            then=f"set macs: {fraction:.3f}, lower round_to, or shorten keep"
            + "".join(
                f"; '{name}' was left alone: {reason}"
                for name, reason in list(left.items())[:5]
                if reason != grouping.UNREAD
            ),
        )
    flaw = plan.flaw(plan.stripped(module, seed), removals(counts), feed)
    if flaw:
        raise StageError(f"removing the chosen channels together is not sound: {flaw}", then="name some in keep")
    smaller = plan.apply(module, removals(counts))
    heads = [(count, group.units) for group, count in zip(sound, counts, strict=True) if group.heads]
    return Pruned(
        smaller, fraction, _changes(module, smaller), left, (sum(a for a, _ in heads), sum(b for _, b in heads))
    )


def _kept(module: nn.Module, patterns: Iterable[str]) -> frozenset[str]:
    paths = [path for path, _ in module.named_modules() if path]
    kept: set[str] = set()
    for pattern in patterns:
        hits = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not hits:
            raise StageError(f"keep: no module matches '{pattern}'", then=did_you_mean(pattern, paths))
        kept |= {path for path in paths for hit in hits if path == hit or path.startswith(f"{hit}.")}
    return frozenset(kept)


def _sound(
    module: nn.Module,
    found: grouping.Found,
    feed: Mapping[str, Tensor],
    seed: int,
    watch: Callable[[Iterable[Group]], Iterable[Group]],
) -> tuple[list[Group], dict[str, str]]:
    """Try each group on a copy of the model; keep those whose removal means what it should."""
    sound, left = [], dict(found.left)
    bare = plan.stripped(module, seed)
    for group in watch(found.groups):
        variants = [group, grouping.with_width_counters(group, module)] if group.heads else [group]
        flaws = [_flaw(bare, variant, feed, seed) for variant in variants]
        if "" in flaws:
            sound.append(variants[flaws.index("")])
        else:
            left[group.name] = flaws[0]
    return sound, left


def _flaw(bare: nn.Module, group: Group, feed: Mapping[str, Tensor], seed: int) -> str:
    """Try to remove one unit, then a random quarter: a regular choice could hide that indices are mixed up."""
    units = group.ranked([0.0] * len(group.blocks))
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    for chosen in (order[:1], order[: max(1, len(units) // 4)]):
        roots = tuple(root for unit in chosen for root in units[unit][1])
        reason = plan.flaw(bare, [Removal(group, roots)], feed)
        if reason:
            return reason
    return ""


def _scores(
    module: nn.Module, sound: list[Group], method: str, taylor: Taylor | None, whole: Mapping[str, int]
) -> list[list[float]]:
    if method == "l2":
        return importance.l2(module, sound)
    if method == "bn_scale":
        return importance.bn_scale(module, sound)
    assert taylor is not None, "importance taylor comes with data"
    costs = [_cost(group, whole) for group in sound]
    with models.blamed("its gradients cannot be computed"):
        return importance.taylor(module, sound, taylor.batches, taylor.loss, costs)


def _cost(group: Group, whole: Mapping[str, int]) -> float:
    """Give the multiply-accumulates that one block takes part in, over all layers of its group."""
    members = [m for m in group.members if m.side != "tensor"]
    return sum(whole.get(m.path, 0) for m in members) / len(group.blocks)


def _changes(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    smaller = dict(after.named_modules())
    rows = []
    for path, layer in before.named_modules():
        if isinstance(layer, MATRICES):
            old, new = _widths(layer), _widths(smaller[path])
            if old != new:
                rows.append({"layer": path, "type": type(layer).__name__, "before": old, "after": new})
    return rows


def _widths(layer: Any) -> list[int]:
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    return [int(getattr(layer, f"in_{kind}")), int(getattr(layer, f"out_{kind}"))]


__all__ = ["TOLERANCE", "Pruned", "Taylor", "prune", "taylor_from"]
