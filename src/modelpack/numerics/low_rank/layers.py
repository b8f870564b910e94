"""The layers of a model that can be split into two smaller ones, and what they cost before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from modelpack.numerics import structure
from modelpack.numerics.calling import call, watched

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from modelpack.numerics.structure import Form

Convolutions = Literal["auto", "channel", "spatial", "none"]
"""How convolutions with a kernel are split: ``auto`` in the better of both ways, ``none`` leaves all of them alone."""

_MULTIPLYING = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


_PAYS_LINEAR, _PAYS_CONVOLUTION = 0.95, 0.8
"""Parts of a layer's work up to which its halves took less time than the whole in onnxruntime: two calls cost more than
one, and kernels of convolutions compute channels in blocks, which those in the middle may not fill."""


@dataclass(frozen=True)
class Layer:
    """A layer that can be split, in one of the ways that it can.

    Attributes:
        path: Where it is.
        form: How it would be split.
        full: Channels between the halves with which nothing is lost.
        cost: Its multiply-accumulates in one forward pass.
        rank_cost: Those of the halves, for each channel between them.
        weights: Numbers in its weight.
        rank_weights: Numbers in the halves' weights, for each channel between them.
        pays: Part of its work that the halves may take at most, for them to be faster.
    """

    path: str
    form: Form
    full: int
    cost: int
    rank_cost: int
    weights: int
    rank_weights: int
    pays: float

    @property
    def most(self) -> int:
        """The most channels between the halves with which both time and weights become less; 0 if none do."""
        return min(self.full, int(self.pays * self.cost) // self.rank_cost, (self.weights - 1) // self.rank_weights)


@dataclass(frozen=True)
class Found:
    """Layers that can be split, in the model's order, each way of a layer by itself; and why others cannot."""

    layers: tuple[Layer, ...]
    left: Mapping[str, str]


def find(
    module: nn.Module, feed: Mapping[str, Tensor], kept: Collection[str] = (), convolutions: Convolutions = "auto"
) -> Found:
    """List the layers that could be split, untried; the arguments are those of `low_rank.find`."""
    places = _places(module, feed)
    shared = _shared(module)
    found: list[Layer] = []
    left: dict[str, str] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, _MULTIPLYING):
            continue
        reason = _reason(path, layer, kept, convolutions) or shared.get(path, "")
        if not reason and path not in places:
            reason = "the model never calls it"
        if not reason:
            ways = [_costed(path, layer, form, *places[path]) for form in _forms(layer, convolutions)]
            found += [way for way in ways if way.most]
            reason = "" if any(way.most for way in ways) else "its halves would not be smaller and faster"
        if reason:
            left[path] = reason
    return Found(tuple(found), left)


def _forms(layer: nn.Module, convolutions: Convolutions) -> list[Form]:
    if convolutions in {"channel", "none"} or structure.unfit(layer, "spatial"):
        return ["channel"]
    return ["spatial"] if convolutions == "spatial" else ["channel", "spatial"]


def _reason(path: str, layer: nn.Module, kept: Collection[str], convolutions: Convolutions) -> str:
    if path in kept:
        return "keep names it"
    if convolutions == "none" and not isinstance(layer, nn.Linear):
        return "convolutions are left alone"
    return structure.unfit(layer, "channel")


def _shared(module: nn.Module) -> dict[str, str]:
    """Name the layers whose weights, or which themselves, have several places."""
    owners: dict[int, list[str]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        for name, value in child.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(value), []).append(f"{path}.{name}")
    reasons = {}
    for slots in owners.values():
        for slot in slots if len(slots) > 1 else ():
            other = next(item for item in slots if item != slot)
            reasons[slot.rpartition(".")[0]] = f"it shares its weights with '{other.rpartition('.')[0]}'"
    return reasons


def _places(module: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Count the positions at which each layer computes, and those with its output's rows and its input's columns."""
    places: dict[str, tuple[int, int]] = {}

    def note(path: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            taken = given[0] if given else kwargs["input"]
            width = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
            whole = output.numel() // width
            between = whole // output.shape[-1] * taken.shape[-1]
            before = places.get(path, (0, 0))
            places[path] = (before[0] + whole, before[1] + between)

        return hook

    factored = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, structure.FACTORED)]
    with torch.no_grad(), watched((layer, note(path)) for path, layer in factored):
        call(module, feed)
    return places


def _costed(path: str, layer: nn.Module, form: Form, whole: int, between: int) -> Layer:
    shape = layer.get_parameter("weight").shape
    if form == "spatial":
        first, second, first_places = shape[1] * shape[2], shape[0] * shape[3], between
    else:
        first, second, first_places = shape[1:].numel(), shape[0], whole
    return Layer(
        path,
        form,
        structure.full_rank(layer, form),
        cost=whole * shape.numel(),
        rank_cost=first_places * first + whole * second,
        weights=shape.numel(),
        rank_weights=first + second,
        pays=_PAYS_LINEAR if isinstance(layer, nn.Linear) else _PAYS_CONVOLUTION,
    )
