"""What may be removed together: channels that depend on each other across layers, found by tracing.

torch-pruning's dependency graph says which indices of which layers belong together; everything else (what a unit is,
whether removing it is sound, what it is worth) is decided here and in the neighbouring modules.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.pruning.surgery import MATRICES, Member, Side, is_depthwise, parts_of, twin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Attributes under which attention modules keep their number of heads."""

UNREAD = "no layer that can shrink reads it"
"""Why a group is no group: its channels are outputs, or go into something that cannot be cut."""

_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


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
    opaque = _cut_at_opaque(traced)
    with warnings.catch_warnings():
        # Its doubts about a layer are settled here by trying, one group at a time.
        warnings.filterwarnings("ignore", module="torch_pruning")
        graph = _trace(traced, feed)
        raw_groups = list(graph.get_all_groups(root_module_types=MATRICES))
    names = {child: path for path, child in traced.named_modules()}
    names |= {parameter: path for path, parameter in traced.named_parameters()}
    groups, left = [], dict(opaque)
    for raw in raw_groups:
        members = tuple(_members(raw, names, graph))
        name = names[raw[0].dep.target.module]
        reason = _forbidden(members, traced, keep)
        group = _group(name, members, traced, _coupled(raw, members, graph)) if not reason else None
        if group is None:
            left[name] = reason or "its layers are grouped in ways that do not line up"
        else:
            groups.append(group)
    return Found(tuple(groups), left)


def _cut_at_opaque(module: nn.Module) -> dict[str, str]:
    """Make recurrent and fused attention layers ends of the trace: what lies inside cannot be cut from outside."""
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, _OPAQUE)}
    for layer in found.values():
        layer.register_forward_hook(lambda _layer, _inputs, output: tree_map(_leaf, output))
    return {
        path: f"{type(layer).__name__} layers are left alone, and so is what feeds them"
        for path, layer in found.items()
    }


def _leaf(value: object) -> object:
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def _trace(module: nn.Module, feed: Mapping[str, Tensor]) -> Any:
    def forward(model: nn.Module, example: Mapping[str, Tensor]) -> list[Tensor]:
        return [value for value in models.call(model, example).values() if value.grad_fn is not None]

    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(module, feed, forward_fn=forward, verbose=False)
    except Exception as error:
        raise StageError(
            f"the model's dependencies cannot be traced: {type(error).__name__}: {error}",
            then="leave `prune` out, or simplify the model's forward()",
        ) from error


def _members(raw: Any, names: Mapping[Any, str], graph: Any) -> Iterator[Member]:
    width = len(raw[0].idxs)
    for item in raw.items:
        target = item.dep.target.module
        if target not in names:
            continue  # a mere operation, such as an addition
        places: list[list[int]] = [[] for _ in range(width)]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            places[root].append(index)
        if isinstance(target, nn.Parameter):
            dimension = graph.module2node[target].pruning_dim
            yield Member(names[target], "tensor", tuple(map(tuple, places)), dimension)
            continue
        side: Side = "both"
        if isinstance(target, MATRICES) and not is_depthwise(target):
            side = "out" if item.dep.handler.__name__ == "prune_out_channels" else "in"
        yield Member(names[target], side, tuple(map(tuple, places)))


def _forbidden(members: Sequence[Member], module: nn.Module, keep: frozenset[str]) -> str:
    modules = dict(module.named_modules())
    for member in members:
        owner = member.path.rpartition(".")[0] if member.side == "tensor" else member.path
        if owner in keep or member.path in keep:
            return f"'{member.path}' is kept"
        around = [owner, *(owner.rsplit(".", n)[0] for n in range(1, owner.count(".") + 1))]
        opaque = next((modules[path] for path in around if isinstance(modules[path], _OPAQUE)), None)
        if opaque is not None:
            return f"'{owner}' belongs to a {type(opaque).__name__}, which is left alone"
        if isinstance(modules[owner], nn.LayerNorm):
            return f"'{owner}' normalises over it; removing channels would change all others"
    if not any(member.side == "in" for member in members):
        return UNREAD
    return ""


def _coupled(raw: Any, members: Sequence[Member], graph: Any) -> list[tuple[int, ...]]:
    """Find which root indices drag others of their own layer along, as the halves of a gated unit do.

    Asking for all indices at once hides this, so each is asked for alone; a few are probed first, because most layers
    have no such coupling and asking costs time.
    """
    root, width = raw[0].dep, len(members[0].places)

    def dragged(index: int) -> set[int]:
        alone = graph.get_pruning_group(root.target.module, root.handler, [index])
        return {found for item in alone.items if item.dep.target is root.target for found in item.idxs}

    if all(dragged(index) == {index} for index in {0, width // 2, width - 1}):
        return [(index,) for index in range(width)]
    blocks: list[set[int]] = []
    for index in range(width):
        joined = dragged(index) | {index}
        apart = [block for block in blocks if not block & joined]
        blocks = [*apart, joined.union(*(block for block in blocks if block & joined))]
    return sorted(tuple(sorted(block)) for block in blocks)


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
