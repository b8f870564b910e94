"""Blocks that a model can do without: its output keeps its shape when one of them passes on what it gets.

A block is a module that holds weights and lets its input pass around them, as a residual block or the layer of a
transformer does; with its weight matrices zeroed, its output still follows its input. Of blocks inside blocks the
finest are taken that are at least two. Which of them can go is found out by trying.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from modelpack.errors import StageError
from modelpack.numerics import structure
from modelpack.numerics.calling import Outline, call, outline, watched
from modelpack.numerics.pruning.surgery import twin
from modelpack.numerics.structure import CONTAINERS, Bypass, Drop, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_COUNTS = re.compile(r"layer|block|depth", re.IGNORECASE)
"""Names of attributes that may count the items of a container."""


@dataclass(frozen=True)
class Block:
    """A block that can go.

    Attributes:
        path: Where it is.
        counters: Attributes (module path, name) that count the items of its container and fall with it.
    """

    path: str
    counters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Found:
    """Blocks in the order in which the model calls them, and why others must stay."""

    blocks: tuple[Block, ...]
    left: Mapping[str, str]


@dataclass
class _Call:
    """What a module was called with and gave: the first tensor of each."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Tensor
    taken: Tensor
    count: int = 1


def find(module: nn.Module, feed: Mapping[str, Tensor]) -> Found:
    """List the blocks of a module.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device.

    Raises:
        StageError: When the module cannot be copied.
    """
    calls = _calls(module, feed)
    names = {path: child for path, child in module.named_modules() if path in calls}
    candidates = {path for path, child in names.items() if _passes(child, calls[path])}
    chosen = sorted(_finest(module, "", candidates), key=list(calls).index)
    wanted = outline(module, feed)
    blocks, left = [], {}
    for path in chosen:
        variants = [Block(path, counters) for counters in dict.fromkeys([_counters(module, path), ()])]
        flaws = [flaw(module, feed, [block], chosen, wanted) for block in variants]
        if "" in flaws:
            blocks.append(variants[flaws.index("")])
        else:
            left[path] = flaws[-1]
    return Found(tuple(blocks), left)


def remove(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Take blocks out of a module, in place; attributes that count them follow."""
    modules = dict(module.named_modules())
    items: dict[str, list[str]] = {}
    operations: list[Operation] = []
    counters = []
    for block in blocks:
        owner, _, name = block.path.rpartition(".")
        if isinstance(modules[owner], CONTAINERS):
            items.setdefault(owner, []).append(name)
        else:
            operations.append(Bypass(path=block.path))
        counters += [(modules[path], attribute) for path, attribute in block.counters]
    operations += [Drop(path=path, items=tuple(names)) for path, names in items.items()]
    # Deepest first: what a container loses changes the paths of what lies in its other items.
    structure.change(module, sorted(operations, key=lambda item: (-len(_parts(item.path)), item.path)))
    for counting, attribute in counters:
        setattr(counting, attribute, getattr(counting, attribute) - 1)


def without(module: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """Give a copy of a module without some blocks; it shares its tensors with the module."""
    smaller = structure.light(module)
    remove(smaller, blocks)
    return smaller


def flaw(
    module: nn.Module, feed: Mapping[str, Tensor], gone: Sequence[Block], chosen: Iterable[str], wanted: Outline
) -> str:
    """Say what is wrong with a module without some of its blocks; empty when nothing is.

    Args:
        module: The whole module.
        feed: Inputs of one forward pass.
        gone: The blocks that go.
        chosen: Paths of all blocks; each of the others must still be called.
        wanted: The outline of the whole module.
    """
    smaller = structure.light(module)
    staying = {path: smaller.get_submodule(path) for path in chosen if path not in {block.path for block in gone}}
    try:
        remove(smaller, gone)
        called, hooks = _watched(staying)
        found = outline(smaller, feed)
    except StageError as error:
        return error.what
    except Exception as error:  # noqa: BLE001  the user's forward may raise anything
        return f"the model fails without it ({type(error).__name__})"
    for hook in hooks:
        hook.remove()
    if found != wanted:
        return "the outputs would have other shapes without it"
    idle = sorted(staying.keys() - called)
    return f"without it, the model would not call '{idle[0]}' any more" if idle else ""


def _watched(modules: Mapping[str, nn.Module]) -> tuple[set[str], list[Any]]:
    called: set[str] = set()
    hooks = [
        child.register_forward_hook(lambda _child, _args, _output, path=path: called.add(path))
        for path, child in modules.items()
    ]
    return called, hooks


def _calls(module: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, _Call]:
    """Run a module and note how those of its children are called that are made of others, in order."""
    calls: dict[str, _Call] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            given, taken = first_tensor((args, kwargs)), first_tensor(output)
            if path in calls:
                calls[path].count += 1
            elif given is not None and taken is not None:
                calls[path] = _Call(args, kwargs, given, taken)

        return hook

    made = [
        (path, child)
        for path, child in module.named_modules()
        if path and not isinstance(child, CONTAINERS) and any(True for _ in child.children())
    ]
    with torch.no_grad(), watched((child, note(path)) for path, child in made):
        call(module, feed)
    return calls


def first_tensor(value: object) -> Tensor | None:
    """Give the first tensor in nested arguments or outputs: the one that a block passes on."""
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)


def _passes(child: nn.Module, seen: _Call) -> bool:
    """Tell whether a module lets its input pass around its weights, in its shape."""
    alike = seen.given.shape == seen.taken.shape and seen.given.dtype == seen.taken.dtype
    if seen.count > 1 or not alike or not seen.given.is_floating_point():
        return False
    matrices = [name for name, value in child.named_parameters() if value.ndim > 1]
    if not matrices:
        return False
    silent = twin(child)
    moved = seen.given + torch.linspace(-1, 1, seen.given.numel(), device=seen.given.device).view_as(seen.given)
    with torch.no_grad():
        for name in matrices:
            silent.get_parameter(name).zero_()
        outputs = []
        for value in (seen.given, moved.to(seen.given.dtype)):
            args, kwargs = tree_map(lambda leaf, new=value: _put(leaf, seen.given, new), (seen.args, seen.kwargs))
            outputs.append(first_tensor(silent(*args, **kwargs)))
    one, other = outputs
    return one is not None and other is not None and not torch.equal(one, other)


def _put(leaf: object, old: Tensor, new: Tensor) -> object:
    """Replace one tensor among arguments; the others are copied, since a module may write into them."""
    if leaf is old:
        return new.clone()
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _finest(module: nn.Module, path: str, candidates: set[str]) -> list[str]:
    """Give the blocks in a part of a module: those inside it where they are at least two, else itself.

    Inside an item of a container only items of containers count, so that the halves of a transformer's layer, both
    residual, are no blocks of their own.
    """
    child = module.get_submodule(path)
    inner = [
        block
        for name, _ in child.named_children()
        for block in _finest(module, f"{path}.{name}" if path else name, candidates)
    ]
    if path not in candidates:
        return inner
    items = [block for block in inner if _is_item(module, block)] if _is_item(module, path) else inner
    return items if len(items) > 1 else [path]


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []


def _is_item(module: nn.Module, path: str) -> bool:
    return isinstance(module.get_submodule(path.rpartition(".")[0]), CONTAINERS)


def _counters(module: nn.Module, path: str) -> tuple[tuple[str, str], ...]:
    """Find attributes around a container that equal its number of items, such as num_hidden_layers."""
    container, _, _ = path.rpartition(".")
    if not _is_item(module, path):
        return ()
    total = len(list(module.get_submodule(container).children()))
    parts = _parts(container)
    owners = [".".join(parts[:depth]) for depth in range(len(parts))]
    return tuple(
        (owner, name)
        for owner in owners
        for name, value in vars(module.get_submodule(owner)).items()
        if type(value) is int and value == total and _COUNTS.search(name)
    )
