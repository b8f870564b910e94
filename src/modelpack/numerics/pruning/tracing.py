"""Tracing a model: which indices of which layers follow from a layer's output channels."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from modelpack.errors import StageError
from modelpack.numerics.calling import call
from modelpack.numerics.pruning import concatenation, culprits
from modelpack.numerics.pruning.surgery import MATRICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MOST_LINKS = 4000
_MOST_INDICES = 4_000_000
"""Links and indices of one group beyond which its dependencies are taken to have no end."""

_MOST_GROWTH = 4
"""A link with this many times more indices than the widest layer has lost its way."""

OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers whose inside cannot be cut from outside."""


class Index(NamedTuple):
    """An index in a layer, and the root index that it follows from; torch-pruning's mappings read these names."""

    idx: int
    root_idx: int


class Link(NamedTuple):
    """Indices that a layer loses, and through which side."""

    node: Any
    handler: Any
    indices: tuple[Index, ...]


def trace(module: nn.Module, feed: Mapping[str, Tensor], ends: list[Tensor]) -> Any:
    """Build torch-pruning's dependency graph of a module.

    Args:
        module: Cut by `cut_at_opaque`.
        feed: Inputs for one forward pass.
        ends: The list that `cut_at_opaque` gave.

    Raises:
        StageError: When it cannot.
    """

    def forward(model: nn.Module, example: Mapping[str, Tensor]) -> list[Tensor]:
        ends.clear()
        outputs = call(model, example)
        found = [value for value in (*outputs.values(), *ends) if value.grad_fn is not None]
        if not found and any(isinstance(layer, MATRICES) for layer in model.modules()):
            raise StageError(
                f"the model's outputs ({', '.join(outputs)}) do not follow from its weights by gradients, which show "
                "what depends on what",
                then="take torch.no_grad(), .detach(), .numpy() and argmax out of the model's forward()",
            )
        return found

    try:
        # Its doubts about a layer are settled later by trying, one group at a time.
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch_pruning")
            graph = torch_pruning.DependencyGraph().build_dependency(module, feed, forward_fn=forward, verbose=False)
    except StageError:
        raise
    except Exception as error:
        raise StageError(
            f"the model's dependencies cannot be traced: {culprits.told(error)}",
            then="simplify that line of the model's forward(), or leave `prune` out",
        ) from error
    concatenation.mend(graph)
    return graph


def cut_at_opaque(module: nn.Module) -> tuple[dict[str, str], list[Tensor]]:
    """Make recurrent and fused attention layers ends of the trace: what lies inside cannot be cut from outside.

    Returns:
        Why each was left alone, and a list that every forward pass fills with what these layers read, so that the
        trace goes on before them.
    """
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, OPAQUE)}
    ends: list[Tensor] = []

    def note(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ends.extend(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))

    for layer in found.values():
        layer.register_forward_pre_hook(note, with_kwargs=True)
        layer.register_forward_hook(lambda _layer, _inputs, output: tree_map(_leaf, output))
    reasons = {
        path: f"{type(layer).__name__} layers are left alone, and so is what feeds them"
        for path, layer in found.items()
    }
    return reasons, ends


def _leaf(value: object) -> object:
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def closures(graph: Any) -> Iterator[tuple[nn.Module, list[Link] | None]]:
    """Follow the dependencies of every layer's output channels, each set of coupled layers once.

    None stands for links that have no end, or lose sight of the channels that they come from.
    """
    seen: set[Any] = set()
    widest = max((max(item.shape) for item in graph.model.parameters() if item.ndim), default=0)
    for module in list(graph.module2node):
        if not isinstance(module, MATRICES) or module in seen:
            continue
        pruner = graph.get_pruner_of_module(module)
        links = _closure(graph.module2node[module], pruner.prune_out_channels, pruner.get_out_channels(module), widest)
        seen |= {link.node.module for link in links or () if graph.is_out_channel_pruning_fn(link.handler)}
        yield module, links


def _closure(node: Any, handler: Any, width: int, widest: int) -> list[Link] | None:
    """Collect what pruning all output channels of a node entails.

    Written anew because torch-pruning's own walk compares every step with every other, which takes hours where
    indices are mixed (rotary embeddings), and merges indices in a way that hides coupled halves.
    """
    links = [Link(node, handler, tuple(Index(place, place) for place in range(width)))]
    known = {(id(node), handler, links[0].indices)}
    total = 0
    for link in links:  # grows while it is walked
        for dependency in link.node.dependencies:
            if not dependency.is_triggered_by(link.handler):
                continue
            indices: Any = list(link.indices)
            for mapping in dependency.index_mapping:
                indices = mapping(indices) if mapping is not None else indices
            total += len(indices)
            lost = any(item.root_idx is None for item in indices)  # as behind heads that are repeated for others
            if lost or len(indices) > _MOST_GROWTH * widest or total > _MOST_INDICES:
                return None
            following = Link(
                dependency.target, dependency.handler, tuple(Index(item.idx, item.root_idx) for item in indices)
            )
            key = (id(following.node), following.handler, following.indices)
            if following.indices and key not in known:
                known.add(key)
                links.append(following)
        if len(links) > _MOST_LINKS:
            return None
    return links


def blocks(root: nn.Module, links: Sequence[Link]) -> list[tuple[int, ...]]:
    """Join root indices that drag each other along inside the root layer, as the halves of a gated unit do."""
    parent = list(range(len(links[0].indices)))

    def top(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for link in links:
        if link.node.module is root and link.handler == links[0].handler:
            for index in link.indices:
                one, other = sorted((top(index.idx), top(index.root_idx)))
                parent[other] = one
    joined: dict[int, list[int]] = {}
    for place in range(len(parent)):
        joined.setdefault(top(place), []).append(place)
    return [tuple(block) for block in joined.values()]
