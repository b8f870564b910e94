"""Whole blocks of a model left out, least important first, and students of fewer layers.

What a block is worth is measured: the change of the model's outputs when it is passed by, for each part of the cost
that it saves, found anew after each removal. The statistics of batch norms are measured anew before: what they expect
is what the block would have given, and the error that this alone makes is the first to heal. Where blocks are many,
only those are tried whose own output is nearest to their input: 1 - cosine(input, output), the block influence of
ShortGPT (Men et al. 2024, arXiv 2403.03853).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelpack.errors import StageError, did_you_mean, listed
from modelpack.numerics import macs, structure
from modelpack.numerics.calling import call, outline, watched
from modelpack.numerics.pruning import blocks
from modelpack.numerics.pruning.surgery import twin
from modelpack.numerics.training import statistics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelpack.numerics.pruning.blocks import Block, Found

    Feed = Mapping[str, Tensor]

Costs = Callable[[nn.Module, Mapping[str, Tensor], Sequence[str]], Mapping[str, float]]
"""Says what fraction of a model's cost each of some modules is; given the model, its inputs, and the modules' paths."""

_TRIED = 8
"""Blocks whose removal is tried at each step: those of the least influence."""

_NOTHING = 1e-9
"""The cost of a block that costs nothing."""


@dataclass(frozen=True)
class Shallower:
    """A model of fewer blocks and how it came about.

    Attributes:
        module: The model without the blocks that went.
        gone: Paths of these blocks in the whole model, in the order in which they went.
        table: By block: path, type, influence, cost (its fraction of the model's), the change of the outputs when it
            went, or would have gone, after those before it (None where it was not tried), and its place in the order in
            which they went (0 if it stayed).
        left: Block → why it had to stay.
    """

    module: nn.Module
    gone: tuple[str, ...]
    table: list[dict[str, Any]]
    left: Mapping[str, str]


def by_work(module: nn.Module, feed: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, float]:
    """Give the fraction of the multiply-accumulates of one forward pass that each module computes."""
    counts = macs.count_by_module(module, feed)
    return {path: counts.get(path, 0) / max(1, counts[""]) for path in paths}


def shallower(
    module: nn.Module,
    feed: Feed,
    rows: Sequence[Feed],
    *,
    share: float = 1.0,
    drop: Iterable[str] = (),
    keep: Iterable[str] = (),
    costs: Costs = by_work,
    watch: Callable[[Sequence[int]], Iterable[int]] = lambda steps: steps,
) -> Shallower:
    """Leave the least important blocks of a model out.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device: blocks are found and tried with it.
        rows: Batches of inputs on the module's device, on which importance, and statistics before it, are measured.
        share: Fraction of the blocks that stays, 0 < share ≤ 1; at least one does.
        drop: Glob patterns of blocks that go whatever their importance; they count among those that go.
        keep: Glob patterns of modules that must stay as they are: blocks among, inside or around them stay.
        costs: Says what each block costs.
        watch: Passes the steps through, to show progress.

    Raises:
        StageError: When the model has no such blocks, a pattern names none, or too few of them may go.
    """
    found = blocks.find(module, feed)
    paths = [block.path for block in found.blocks]
    if not paths:
        raise StageError(f"the model has no blocks that it can do without{_reasons(found)}", then="leave depth out")
    kept = [path for path in paths if any(_touches(module, path, pattern) for pattern in keep)]
    named = _named(module, drop, paths, found)
    if set(named) & set(kept):
        raise StageError(f"drop and keep both name {listed(sorted(set(named) & set(kept)))}")
    count = max(len(named), len(paths) - max(1, round(len(paths) * share)))
    if count > len(paths) - len(kept) or count == len(paths):
        raise StageError(
            f"{count} of the {len(paths)} blocks would go, but {max(1, len(kept))} of them must stay",
            then="shorten drop, or keep" if share == 1 else "raise depth, or shorten keep or drop",
        )
    state = _State(module, rows, found, costs(module, feed, paths))
    for _ in watch(range(count - len(named))):
        state.step(kept, named)
    gone = (*named, *state.gone)
    chosen = [block for block in found.blocks if block.path in gone]
    return Shallower(_without(module, feed, chosen, paths), gone, state.table(gone), found.left)


def thinned(module: nn.Module, feed: Feed, keep: int | Sequence[int]) -> nn.Module:
    """Give a student of fewer layers, which starts as its teacher without the others.

    Args:
        module: The teacher, in evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device.
        keep: How many of its layers stay, evenly spaced with the first and the last (DistilBERT, Sanh et al. 2019,
            arXiv 1910.01108), or the numbers of those that stay, the first being 0.

    Raises:
        StageError: When the teacher has no layers that it can do without, or fewer than asked for.
    """
    found = blocks.find(module, feed)
    total = len(found.blocks)
    if not total:
        raise StageError(f"the model has no layers that it can do without{_reasons(found)}", then="give student")
    then = "its layers are " + ", ".join(f"{place}: {block.path}" for place, block in enumerate(found.blocks))
    if isinstance(keep, Sequence):
        stay = sorted(set(keep))
        if len(stay) < len(keep) or not stay or stay[0] < 0 or stay[-1] >= total:
            raise StageError(f"keep_layers {list(keep)} names no distinct layers from 0 to {total - 1}", then=then)
    else:
        if not 1 <= keep <= total:
            raise StageError(f"keep_layers is {keep}, but the model has {total} layers that can go", then=then)
        stay = [round(place * (total - 1) / max(1, keep - 1)) for place in range(keep)]
    chosen = [block for place, block in enumerate(found.blocks) if place not in stay]
    return _without(module, feed, chosen, [block.path for block in found.blocks])


class _State:
    """What is known while blocks go one after the other."""

    def __init__(self, module: nn.Module, rows: Sequence[Feed], found: Found, costs: Mapping[str, float]) -> None:
        self.module, self.rows, self.found, self.costs = module, rows, found, costs
        whole = _settled(structure.light(module), rows)  # a block that does nothing must change nothing
        self.wanted = [_outputs(whole, batch) for batch in rows]
        self.influence = _influence(module, rows, [block.path for block in found.blocks])
        self.change: dict[str, float] = {}
        self.gone: list[str] = []

    def step(self, kept: Iterable[str], named: Iterable[str]) -> None:
        """Choose the block whose removal, after those before it, changes the outputs least for what it saves."""
        before = {*named, *self.gone}
        free = [block for block in self.found.blocks if block.path not in {*before, *kept}]
        free.sort(key=lambda block: self.influence[block.path])
        changes = {}
        for block in free[:_TRIED]:
            trial = [item for item in self.found.blocks if item.path in {*before, block.path}]
            changes[block.path] = self._change(blocks.without(self.module, trial))
        self.change |= changes
        self.gone.append(min(changes, key=lambda path: changes[path] / max(self.costs[path], _NOTHING)))

    def _change(self, smaller: nn.Module) -> float:
        """Measure the mean relative change of the outputs: ‖new - old‖² / ‖old‖²."""
        _settled(smaller, self.rows)
        parts = []
        for batch, wanted in zip(self.rows, self.wanted, strict=True):
            found = _outputs(smaller, batch)
            for name, value in wanted.items():
                scale = value.square().sum().clamp(min=torch.finfo(value.dtype).tiny)
                parts.append(float((found[name] - value).square().sum() / scale))
        change = sum(parts) / max(1, len(parts))
        return change if change == change else float("inf")  # noqa: PLR0124  NaN would look like the least change

    def table(self, gone: Sequence[str]) -> list[dict[str, Any]]:
        """Give one line a block: what it does, and as which it went, if it did."""
        return [
            {
                "block": block.path,
                "type": type(self.module.get_submodule(block.path)).__name__,
                "influence": self.influence[block.path],
                "cost": self.costs[block.path],
                "change": self.change.get(block.path),
                "order": gone.index(block.path) + 1 if block.path in gone else None,
            }
            for block in self.found.blocks
        ]


def _settled(copy: nn.Module, rows: Sequence[Feed]) -> nn.Module:
    """Let the batch norms of a copy, which shares its tensors, know what comes now."""
    statistics.own(copy)
    statistics.reestimate(copy, rows)
    return copy


def _outputs(module: nn.Module, feed: Feed) -> dict[str, Tensor]:
    with torch.no_grad():
        found = call(module, feed)
    return {name: value.float() for name, value in found.items() if value.is_floating_point()}


def _influence(module: nn.Module, rows: Sequence[Feed], paths: Iterable[str]) -> dict[str, float]:
    """Measure 1 - cosine(input, output) of each block, averaged over rows."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}

    def note(path: str) -> Callable[..., None]:
        def hook(_child: nn.Module, args: Any, kwargs: Any, output: object) -> None:
            given, taken = blocks.first_tensor((args, kwargs)), blocks.first_tensor(output)
            assert given is not None, "blocks read tensors"
            assert taken is not None, "blocks give tensors"
            found[path].append(1 - functional.cosine_similarity(given.flatten(1), taken.flatten(1)).float())

        return hook

    with watched((module.get_submodule(path), note(path)) for path in found):
        for batch in rows:
            _outputs(module, batch)
    return {path: float(torch.cat(parts).mean()) for path, parts in found.items()}


def _without(module: nn.Module, feed: Feed, chosen: Sequence[Block], paths: Sequence[str]) -> nn.Module:
    """Give a copy without the chosen blocks, once it is known to be sound."""
    smaller = twin(module)
    if chosen:
        reason = blocks.flaw(module, feed, chosen, paths, outline(module, feed))
        if reason:
            raise StageError(f"leaving {listed(block.path for block in chosen)} out together: {reason}")
        blocks.remove(smaller, chosen)
    return smaller


def _named(module: nn.Module, patterns: Iterable[str], paths: Sequence[str], found: Found) -> list[str]:
    named: list[str] = []
    for pattern in patterns:
        hits = fnmatch.filter(paths, pattern)
        if not hits:
            raise StageError(f"drop: no block matches '{pattern}'", then=_why_none(module, pattern, paths, found))
        named += [path for path in hits if path not in named]
    return named


def _why_none(module: nn.Module, pattern: str, paths: Sequence[str], found: Found) -> str:
    there = fnmatch.filter([path for path, _ in module.named_modules() if path], pattern)
    if not there:
        return did_you_mean(pattern, paths)
    reason = found.left.get(there[0], "its output has not the shape of its input, or nothing passes around its weights")
    return f"'{there[0]}' must stay: {reason}; the blocks are {listed(paths, 12)}"


def _touches(module: nn.Module, path: str, pattern: str) -> bool:
    """Tell whether a pattern names a block, what it lies in, or anything inside it."""
    inside = [f"{path}.{name}" if name else path for name, _ in module.get_submodule(path).named_modules()]
    parts = path.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return bool(fnmatch.filter([*inside, *around], pattern))


def _reasons(found: Found) -> str:
    told = "; ".join(f"{path}: {reason}" for path, reason in list(found.left.items())[:5])
    return f" ({told})" if told else ""
