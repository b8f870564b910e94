"""Whether layers can be split without a change of what the model means: found out by doing it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import structure
from modelpack.numerics.calling import Outline, call, outline, watched
from modelpack.numerics.low_rank import spectra
from modelpack.numerics.low_rank.layers import Found
from modelpack.numerics.structure import Factor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from modelpack.numerics.low_rank.layers import Layer

_TOLERANCE = 1e-3
"""Largest difference that rounding explains, relative to the largest output."""


def sound(module: nn.Module, feed: Mapping[str, Tensor], found: Found) -> Found:
    """Keep the layers that can be split: the model runs, and subclasses of torch's layers do nothing else by weights.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device.
        found: Layers, untried.

    Raises:
        StageError: When the module cannot be copied, or weights are not finite.
    """
    wanted = outline(module, feed)
    once = {layer.path: layer for layer in found.layers}
    flaws = _own_ways(module, feed, once)
    once = {path: layer for path, layer in once.items() if path not in flaws}
    if _flaw(module, feed, once.values(), wanted):
        flaws |= {path: flaw for path, layer in once.items() if (flaw := _flaw(module, feed, [layer], wanted))}
    return Found(tuple(layer for layer in found.layers if layer.path not in flaws), {**found.left, **flaws})


def _flaw(module: nn.Module, feed: Mapping[str, Tensor], layers: Collection[Layer], wanted: Outline) -> str:
    trial = structure.light(module)
    structure.change(trial, [Factor(path=layer.path, form=layer.form, rank=1) for layer in layers])
    with torch.no_grad():
        for layer in layers:
            pair: Any = trial.get_submodule(layer.path)
            # Nothing else: a subclass shares the rest with the module.
            for tensor in (pair[0].weight, pair[1].weight, pair[1].bias):
                if tensor is not None:
                    tensor.zero_()
    try:
        found = outline(trial, feed)
    except StageError as error:
        return error.what
    except Exception as error:  # noqa: BLE001  the user's forward may raise anything
        return f"the model reads it in a way that no other layer can stand for ({type(error).__name__})"
    return "" if found == wanted else "the outputs would have another form"


def _own_ways(module: nn.Module, feed: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> dict[str, str]:
    """Find the subclasses whose halves with all channels between do not give what they give."""
    owners = {path: module.get_submodule(path) for path in layers}
    seen: dict[str, tuple[Any, ...]] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda _layer, given, named, output: seen.update({path: (given, named, output)})

    special = {path: owner for path, owner in owners.items() if type(owner) not in structure.FACTORED}
    with torch.no_grad(), watched((owner, note(path)) for path, owner in special.items()):
        call(module, feed)
    apart = {path: _apart(module, layers[path], *found) for path, found in seen.items()}
    return {
        path: f"{type(owners[path]).__name__} does something of its own with its weights"
        for path, difference in apart.items()
        if not difference <= _TOLERANCE
    }


@torch.no_grad()
def _apart(module: nn.Module, layer: Layer, given: Any, named: Any, output: Tensor) -> float:
    """Tell how far the halves with all channels between are from the layer, relative to its largest output."""
    owner: Any = module.get_submodule(layer.path)
    pair = structure.halves(owner, layer.form, layer.full)
    spectra.fill(pair, layer, spectra.of_weights(module, layer), owner.bias)
    try:
        found = pair[1](pair[0](*given, **named))
    except Exception:  # noqa: BLE001  a subclass may do anything
        return math.inf
    if found.shape != output.shape:
        return math.inf
    return float((found - output).abs().max()) / max(1e-6, float(output.abs().max()))
