"""What may be removed together: channels that depend on each other across layers, found by tracing.

torch-pruning's dependency graph says which indices of which layers belong together; everything else (what a unit is,
whether removing it is sound, what it is worth) is decided here and in the neighbouring modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from modelpack.numerics.pruning import tracing
from modelpack.numerics.pruning.surgery import MATRICES, Member, Side, channels_of, is_depthwise, parts_of, twin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from modelpack.numerics.pruning.tracing import Link

Counts = tuple[int, ...]
"""How many units each group loses."""

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Attributes under which attention modules keep their number of heads."""

UNREAD = "no layer that can shrink reads it"
"""Why a group is no group: its channels are outputs, or go into something that cannot be cut."""


UNFOLLOWED = "what becomes of its channels cannot be followed"
"""Why a group is no group: the trace loses sight of them, or says what cannot be."""


@dataclass(frozen=True)
class Counter:
    """An attribute that must fall by `step` for every unit removed."""

    path: str
    name: str
    step: int


@dataclass(frozen=True)
class Group:
    """Dimensions of several layers that can only shrink together.

    Attributes:
        name: Path of the layer that makes the channels.
        members: The layers concerned, and which of their indices each root index means.
        blocks: Root indices that make sense only together: single channels, or whole heads.
        classes: Blocks by the part of a grouped layer they belong to; a unit takes one from each.
        counters: Attributes that count blocks.
        heads: True when the blocks are attention heads.
    """

    name: str
    members: tuple[Member, ...]
    blocks: tuple[tuple[int, ...], ...]
    classes: tuple[tuple[int, ...], ...]
    counters: tuple[Counter, ...] = ()
    heads: bool = False

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers whose channels these are."""
        return _makers(self.members)

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.classes[0])

    @property
    def unit_width(self) -> int:
        """Channels in one unit."""
        return len(self.classes) * len(self.blocks[0])

    def ranked(self, scores: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
        """Form units from blocks of equal rank in their classes; least important first, with their root indices.

        Args:
            scores: Importance by block.
        """
        orders = [sorted(members, key=lambda block: (scores[block], block)) for members in self.classes]
        return [
            (sum(scores[block] for block in unit), tuple(root for block in unit for root in self.blocks[block]))
            for unit in zip(*orders, strict=True)
        ]


@dataclass(frozen=True)
class Found:
    """Groups that may be tried, and why layers were left alone."""

    groups: tuple[Group, ...]
    left: Mapping[str, str]


def find(module: nn.Module, feed: Mapping[str, Tensor], keep: frozenset[str]) -> Found:
    """Trace a module and list its groups.

    Args:
        module: Left as it is.
        feed: Inputs for one forward pass.
        keep: Paths of modules that must not change.

    Raises:
        StageError: When the module cannot be traced.
    """
    traced = twin(module)
    for parameter in traced.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    opaque, ends = tracing.cut_at_opaque(traced)
    graph = tracing.trace(traced, feed, ends)
    names = {child: path for path, child in traced.named_modules()}
    names |= {parameter: path for path, parameter in traced.named_parameters()}
    groups, left = [], {**opaque, **_unreached(traced, graph, opaque)}
    for root, links in tracing.closures(graph):
        name = names[root]
        if links is None:
            left[name] = UNFOLLOWED
            continue
        members = tuple(_members(links, names, graph))
        reason = _forbidden(members, traced, keep)
        group = _group(name, members, traced, tracing.blocks(root, links)) if not reason else None
        if group is None:
            left |= dict.fromkeys(_makers(members), reason or "its layers are grouped in ways that do not line up")
        else:
            groups.append(group)
    return Found(tuple(groups), left)


def _makers(members: Sequence[Member]) -> tuple[str, ...]:
    """Name the layers that make channels; where none does, as before a depthwise layer that is the first, that one."""
    return tuple(member.path for member in members if member.side == "out") or (members[0].path,)


def reasons(left: Mapping[str, str]) -> dict[str, list[str]]:
    """Give the layers that were left alone by their reason, but for a model's last ones, which nothing reads."""
    grouped: dict[str, list[str]] = {}
    for layer, reason in left.items():
        if reason != UNREAD:
            grouped.setdefault(reason, []).append(layer)
    return grouped


def _unreached(module: nn.Module, graph: Any, opaque: Mapping[str, str]) -> dict[str, str]:
    """Name the layers that no gradient comes to, so that what depends on them is unknown."""
    return {
        path: "no gradient comes to it: it is never called, or detach() or no_grad() in forward() keeps it off"
        for path, layer in module.named_modules()
        if isinstance(layer, MATRICES)
        and layer not in graph.module2node
        and not any(path.startswith(f"{other}.") for other in opaque)
    }


def _members(links: Sequence[Link], names: Mapping[Any, str], graph: Any) -> Iterator[Member]:
    """Turn links into one member per layer and side; an index that several roots reach belongs to the first."""
    width = len(links[0].indices)
    merged: dict[tuple[Any, Side], dict[int, int]] = {}
    for link in links:
        target = link.node.module
        if target not in names:
            continue  # a mere operation, such as an addition
        owners = merged.setdefault((target, _side(target, link.handler)), {})
        for index in link.indices:
            owners.setdefault(index.idx, index.root_idx)
    for (target, side), owners in merged.items():
        places: list[list[int]] = [[] for _ in range(width)]
        for place, root in owners.items():
            places[root].append(place)
        dimension = graph.module2node[target].pruning_dim if side == "tensor" else 0
        yield Member(names[target], side, tuple(map(tuple, places)), dimension)


def _side(target: Any, handler: Any) -> Side:
    if isinstance(target, nn.Parameter):
        return "tensor"
    if isinstance(target, MATRICES) and not is_depthwise(target):
        return "out" if handler.__name__ == "prune_out_channels" else "in"
    return "both"


def _forbidden(members: Sequence[Member], module: nn.Module, keep: frozenset[str]) -> str:
    """Say why a group must stay whole; empty when it need not."""
    modules = dict(module.named_modules())
    for member in members:
        owner = member.path.rpartition(".")[0] if member.side == "tensor" else member.path
        if owner in keep or member.path in keep:
            return f"'{member.path}' is kept"
        around = [owner, *(owner.rsplit(".", n)[0] for n in range(1, owner.count(".") + 1))]
        opaque = next((modules[path] for path in around if isinstance(modules[path], tracing.OPAQUE)), None)
        if opaque is not None:
            return f"'{owner}' belongs to a {type(opaque).__name__}, which is left alone"
        reason = _unfit(owner, modules[owner], member)
        if reason:
            return reason
    if not any(member.side == "in" for member in members):
        return UNREAD
    return ""


def _unfit(path: str, layer: nn.Module, member: Member) -> str:
    """Say why a layer can lose none of the indices that it is said to lose."""
    if isinstance(layer, nn.LayerNorm):
        return f"'{path}' normalises over it; removing channels would change all others"
    if not isinstance(layer, MATRICES):
        return ""
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        return f"the weight of '{path}' is computed from other tensors (such as by weight_norm)"
    last = max((index for indices in member.places for index in indices), default=0)
    return UNFOLLOWED if last >= channels_of(layer, member.side) else ""


def _group(
    name: str, members: tuple[Member, ...], module: nn.Module, blocks: Sequence[tuple[int, ...]]
) -> Group | None:
    width = len(members[0].places)
    modules = dict(module.named_modules())
    heads = _head_count(members, modules)
    if heads is not None:
        owner, attribute, count = heads
        size = width // count
        whole = tuple(tuple(range(i * size, (i + 1) * size)) for i in range(count))
        return Group(name, members, whole, (tuple(range(count)),), (Counter(owner, attribute, 1),), heads=True)
    labels: dict[tuple[int, ...], list[int]] = {}
    for place, block in enumerate(blocks):
        part = tuple(label for root in block for label in _part(root, members, modules))
        labels.setdefault(part, []).append(place)
    classes = list(labels.values())
    alike = len({len(places) for places in classes}) == 1 and len({len(block) for block in blocks}) == 1
    if not alike or len(classes[0]) < 2:
        return None
    return Group(name, members, tuple(blocks), tuple(map(tuple, classes)))


def _part(root: int, members: Sequence[Member], modules: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """Say in which part of every grouped convolution or normalisation a root index lies."""
    parts = []
    for member in members:
        layer = modules.get(member.path)
        if isinstance(layer, nn.GroupNorm):
            parts += [index // (layer.num_channels // layer.num_groups) for index in member.places[root]]
        elif isinstance(layer, MATRICES) and not isinstance(layer, nn.Linear) and member.side != "both":
            total = layer.out_channels if member.side == "out" else layer.in_channels
            parts += [index // (total // parts_of(layer)) for index in member.places[root]]
    return tuple(parts)


def _head_count(members: Sequence[Member], modules: Mapping[str, nn.Module]) -> tuple[str, str, int] | None:
    """Recognise the query, key and value layers of one attention module that says how many heads it has."""
    makers = [m.path for m in members if m.side == "out" and isinstance(modules[m.path], nn.Linear)]
    parents = {path.rpartition(".")[0] for path in makers}
    if len(makers) < 3 or len(parents) != 1:
        return None
    owner = parents.pop()
    width = len(members[0].places)
    for name in HEAD_COUNTS:
        count = getattr(modules[owner], name, None)
        if type(count) is int and count > 1 and width % count == 0:
            return owner, name, count
    return None


def with_width_counters(group: Group, module: nn.Module) -> Group:
    """Also lower the attention module's attributes that hold the width of all heads together, such as all_head_size."""
    owner = group.counters[0].path
    size = len(group.blocks[0])
    width = math.prod((size, len(group.blocks)))
    known = {counter.name for counter in group.counters}
    extra = [
        Counter(owner, name, size)
        for name, value in vars(module.get_submodule(owner)).items()
        if type(value) is int and value == width and name not in known and not name.startswith("_")
    ]
    return replace(group, counters=(*group.counters, *extra))
