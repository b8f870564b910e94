"""Layers that read removed channels are fitted to what they gave before, by least squares on the channels that stay.

He et al. 2017 (arXiv 1707.06168) go from layer to layer, each fitted on what the pruned layers before it give. Here the
unpruned model alone is read, once for all layers: each is the best it can be on its own, and none learns to make up for
rows that happened to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from modelpack.numerics import matrices
from modelpack.numerics.fitting import READABLE, Layer, moments, refit
from modelpack.numerics.pruning import surgery

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.fitting import Reading
    from modelpack.numerics.pruning.plan import Removal

DAMPING = 0.01
"""Share of the mean square of a layer's inputs that is added to each, against chance."""

_HALVES = 2

LARGEST = 2**30
"""Bytes of a moment: layers that read more inputs than this allows keep their weights."""

Watch = Callable[[Sequence[Layer]], Iterable[Layer]]
"""Passes layers through while they are fitted, to show progress."""


@dataclass(frozen=True)
class Fitted:
    """A model that is ready for the loss of channels.

    Attributes:
        module: Does without them as well as it can, although they are still there.
        layers: Paths of the layers that were fitted.
        left: Layer that loses inputs, but keeps its weights → why.
    """

    module: nn.Module
    layers: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


Fit = Callable[[nn.Module, "Sequence[Removal]"], Fitted]
"""Prepares a copy of the unpruned model, which is in evaluation mode, for what will go."""


def nothing(module: nn.Module, _removals: Sequence[Removal]) -> Fitted:
    """Leave a model as it is: a `Fit`."""
    return Fitted(module)


def by_least_squares(reading: Reading, watch: Watch = lambda layers: layers) -> Fit:
    """Fit the layers that lose inputs to what they give on some rows.

    The fit raises a StageError where what a layer reads is not finite.
    """

    def fit(module: nn.Module, removals: Sequence[Removal]) -> Fitted:
        silent, made = surgery.twin(module), []
        readers, left = _readers(module, removals)
        for removal in removals:
            surgery.silence(silent, removal.group.members, removal.roots)
        quiet: dict[str, Any] = dict(silent.named_modules())
        for share in moments.shares(readers, moments.BUDGET // _HALVES):
            seen = moments.gather(module, share, reading, whole=True, parts=_HALVES)
            for layer in watch(share):
                path = layer.name.rpartition(".")[0]
                if layer.name not in seen:
                    left[path] = "the rows do not reach it"
                    continue
                ours = Layer(layer.name, (quiet[path],))
                found = _fitted(layer.matrix(), ours.matrix(), *seen[layer.name])
                if found is None:
                    left[path] = "what is learnt from one half of the rows does not hold for the other: name more rows"
                else:
                    ours.put(found)
                    made.append(path)
        return Fitted(silent, tuple(made), left)

    return fit


def _fitted(weight: Tensor, made: Tensor, one: Tensor, other: Tensor) -> Tensor | None:
    """Fit weights on all rows; None where, fitted on one half of the rows, they are no better on the other half.

    Args:
        weight: What they were, ``(groups, outputs, inputs)``.
        made: The same with zeros for what goes.
        one: Moment of one half, ``(groups, inputs, inputs)``.
        other: Moment of the other half.
    """
    learnt = refit.refitted(weight, made, one, DAMPING)
    if not float(refit.error(weight, learnt, other).sum()) < float(refit.error(weight, made, other).sum()):
        return None
    return refit.refitted(weight, made, one + other, DAMPING)


def _readers(module: nn.Module, removals: Iterable[Removal]) -> tuple[list[Layer], dict[str, str]]:
    """List the layers that lose inputs and can be fitted, and say why the others cannot."""
    embeddings = matrices.shared(module)
    losing = {
        member.path for removal in removals if removal.roots for member in removal.group.members if member.side == "in"
    }
    users: dict[int, list[tuple[str, Any]]] = {}
    left: dict[str, str] = {}
    for path, layer in module.named_modules():
        if path in losing:
            reason = _reason(layer, embeddings)
            if reason:
                left[path] = reason
            else:
                users.setdefault(id(layer.weight), []).append((path, layer))
    found = (zip(*together, strict=True) for together in users.values())
    return [Layer(f"{paths[0]}.weight", layers) for paths, layers in found], left


def _reason(layer: Any, embeddings: set[int]) -> str:
    """Say why a layer cannot be fitted; empty where it can."""
    if not isinstance(layer, READABLE):
        return f"the inputs of a {type(layer).__name__} cannot be looked at"
    if reason := matrices.foreign(layer, embeddings):
        return reason
    return "it reads too many inputs at once" if moments.size(Layer("", (layer,))) > LARGEST else ""
