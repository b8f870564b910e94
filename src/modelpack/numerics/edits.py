"""How a module differs from what its factory builds, as data.

An edit is ``{module path: {attribute: value}}``. Nothing here knows a layer type: every plain attribute (numbers,
texts, and lists or dicts of them) is compared, so ``out_channels``, ``num_heads`` and a user's own ``self.width`` all
survive. Tensors travel in the weights file and bring their shapes; one whose value is None is an edit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

_INTERNAL = frozenset(vars(nn.Module())) | {
    "_flat_weights",
    "_flat_weights_names",
    "_all_weights",
    "_modelpack_outputs",
    "_modelpack_structure",
}
"""Attributes that belong to torch, or to us, rather than to the model's structure."""


def difference(fresh: nn.Module, edited: nn.Module) -> dict[str, dict[str, Any]]:
    """Find the plain attributes of `edited` that differ from `fresh`.

    Raises:
        StageError: When modules were added, removed or replaced by another type: what changes a module's tree is kept
            by `structure`, and `fresh` has been changed alike.
    """
    before, after = dict(fresh.named_modules()), dict(edited.named_modules())
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if type(old).__qualname__ != type(new).__qualname__:
            raise StageError(
                f"the factory builds {type(old).__name__} here, the edited model has {type(new).__name__}",
                where=f"module '{path}'",
                then="only attributes, tensors and the changes that structure.py knows can be saved",
            )
    edits = {path: _attributes(before[path], after[path]) for path in before}
    return {path: changed for path, changed in edits.items() if changed}


def _attributes(old: nn.Module, new: nn.Module) -> dict[str, Any]:
    before, after = dict(_plain_attributes(old)), dict(_plain_attributes(new))
    changed = {name: value for name, value in after.items() if name not in before or not _same(before[name], value)}
    for name, tensor in _slots(new):
        if tensor is None and dict(_slots(old)).get(name) is not None:
            changed[name] = None
    return changed


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name not in _INTERNAL and _is_plain(value):
            yield name, value


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _same(old: object, new: object) -> bool:
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True))
    return type(old) is type(new) and old == new


def apply(module: nn.Module, edits: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the attributes that `difference` found, in place.

    Raises:
        StageError: When the factory no longer builds a module that was edited, or an edit is no plain attribute.
    """
    modules = dict(module.named_modules())
    for path, attributes in _items(edits, "the file"):
        if path not in modules:
            raise StageError("the factory no longer builds this module", where=f"module '{path}'")
        for name, value in _items(attributes, f"module '{path}'"):
            owner = modules[path]
            if not _is_settable(owner, name, value):
                raise StageError(f"'{name}' is no attribute that can be set to data", where=f"module '{path}'")
            setattr(owner, name, _like(getattr(owner, name, None), value))


def _items(mapping: object, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(mapping, dict):
        raise StageError(f"the edits are no mapping but a {type(mapping).__name__}", where=where)
    yield from mapping.items()


def _is_settable(owner: nn.Module, name: str, value: object) -> bool:
    """Tell whether setting an attribute changes data alone: no method, no child, and no tensor unless it goes."""
    if name in _INTERNAL or name.startswith("__") or name in owner._modules or not _is_plain(value):  # noqa: SLF001
        return False
    if name in dict(_slots(owner)):
        return value is None
    return name in vars(owner) or _is_plain(getattr(type(owner), name, None))


def _like(old: object, value: object) -> object:
    if isinstance(value, list) and not isinstance(old, list):
        return tuple(_like(None, item) for item in value)
    return value


def _slots(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    # The public walks leave out the places that hold None.
    yield from module._parameters.items()  # noqa: SLF001
    yield from module._buffers.items()  # noqa: SLF001


def tensors(module: nn.Module, fresh: nn.Module) -> dict[str, Tensor]:
    """Collect the tensors that define `module`, by path, on the CPU, each with memory of its own.

    Tied tensors appear once, under their first path. A buffer that torch would not save is included only when it
    differs from what the factory builds.
    """
    rebuilt = dict(_named_slots(fresh))
    persistent = set(module.state_dict(keep_vars=True))
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, tensor in _named_slots(module):
        if tensor is None or id(tensor) in seen:
            continue
        if path not in persistent and _equal(tensor, rebuilt.get(path)):
            continue
        seen.add(id(tensor))
        found[path] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return found


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other)


def _named_slots(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    for path, child in module.named_modules():
        for name, tensor in _slots(child):
            yield (f"{path}.{name}" if path else name), tensor


def put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put tensors into a freshly built and edited module; ties that the factory makes stay, unless both ends are given.

    Raises:
        StageError: When a tensor has no place, or a place no tensor.
    """
    modules = dict(module.named_modules())
    persistent = set(module.state_dict(keep_vars=True))
    placed: dict[int, Tensor] = {}
    missing = []
    # An old tensor must stay alive until the end: its id tells which places were tied to it.
    originals = dict(_named_slots(module))
    for path, old in originals.items():
        owner, _, name = path.rpartition(".")
        if path in values:
            # Two ends of a tie that both bring a tensor are tied no longer: the second must not write into the first.
            tied = old is not None and id(old) in placed
            new = _place(modules[owner], name, old, values[path], in_place=not tied)
            if old is not None:
                placed.setdefault(id(old), new)
        elif old is not None and id(old) in placed:
            setattr(modules[owner], name, placed[id(old)])
        elif old is not None and path in persistent:
            missing.append(path)
    unknown = sorted(set(values) - set(originals))
    if missing or unknown:
        raise StageError(
            f"the weights do not fit what the factory builds: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )


def _place(owner: nn.Module, name: str, old: Tensor | None, value: Tensor, *, in_place: bool) -> Tensor:
    if in_place and old is not None and old.shape == value.shape and old.dtype == value.dtype:
        with torch.no_grad():
            old.copy_(value)
        return old
    if name in owner._parameters:  # noqa: SLF001
        value = nn.Parameter(value, requires_grad=old.requires_grad if old is not None else value.is_floating_point())
    setattr(owner, name, value)
    return value
