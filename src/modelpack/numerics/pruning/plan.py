"""A choice of units to remove, and the model without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.calling import call
from modelpack.numerics.pruning import culprits, surgery
from modelpack.numerics.pruning.surgery import Side, UncutError, twin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelpack.numerics.pruning.groups import Group

_TOLERANCE = 1e-4
"""Largest difference that rounding explains, relative to the largest output."""


@dataclass(frozen=True)
class Removal:
    """Root indices to take from one group, in whole units."""

    group: Group
    roots: tuple[int, ...]


def apply(module: nn.Module, removals: Iterable[Removal]) -> nn.Module:
    """Give a copy of a module without the chosen channels.

    Raises:
        UncutError: When a layer cannot lose them.
    """
    smaller = twin(module)
    drops: dict[tuple[str, Side, int], list[int]] = {}
    for removal in removals:
        for member in removal.group.members:
            indices = [index for root in removal.roots for index in member.places[root]]
            drops.setdefault((member.path, member.side, member.dimension), []).extend(indices)
        units = len(removal.roots) // removal.group.unit_width
        for counter in removal.group.counters:
            owner = smaller.get_submodule(counter.path)
            setattr(owner, counter.name, getattr(owner, counter.name) - counter.step * units)
    surgery.remove(smaller, drops)
    return smaller


def stripped(module: nn.Module, seed: int) -> nn.Module:
    """Give a copy in which removing a channel and ignoring it must be the same.

    Group norms, whose statistics depend on the number of channels, become identities; scales of batch norms, which
    training often starts at zero, become ordinary numbers, so that every channel matters.
    """
    copy = twin(module)
    generator = torch.Generator().manual_seed(seed)
    for path, layer in list(copy.named_modules()):
        if isinstance(layer, nn.GroupNorm):
            owner, _, name = path.rpartition(".")
            setattr(copy.get_submodule(owner), name, nn.Identity())
        elif isinstance(layer, nn.modules.batchnorm._NormBase) and layer.affine:  # noqa: SLF001  the common class
            with torch.no_grad():
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) + 0.5)
                layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) * 0.2)
    return copy


def flaw(module: nn.Module, removals: Sequence[Removal], feed: Mapping[str, Tensor]) -> str:
    """Say what is wrong with removing these channels from a `stripped` module; empty when nothing is.

    The pruned module must give what the whole one gives when the layers that read the channels ignore them.
    """
    silent = twin(module)
    for removal in removals:
        surgery.silence(silent, removal.group.members, removal.roots)
    # Shortened mantissas on CUDA would pass for a flaw.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        wanted = call(silent, feed)
        try:
            found = call(apply(module, removals), feed)
        except UncutError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  the user's forward may raise anything
            return f"the model fails without some of them ({culprits.line(error) or type(error).__name__})"
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            return f"they feed the output '{name}'"
        if value.is_floating_point():
            limit = _TOLERANCE * max(1e-6, float(value.abs().max()))
            if not float((value - found[name]).abs().max()) <= limit:  # NaN is a flaw too
                return "the model uses them in a way that their removal would change"
    return ""
