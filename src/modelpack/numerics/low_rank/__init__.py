"""Low rank: layers are replaced by two smaller ones that together give nearly the same."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.errors import StageError
from modelpack.numerics import macs, structure
from modelpack.numerics.low_rank import layers, ranks, spectra, trial
from modelpack.numerics.low_rank.layers import Convolutions, Found
from modelpack.numerics.structure import Factor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from modelpack.numerics.fitting import Reading
    from modelpack.numerics.low_rank.layers import Layer
    from modelpack.numerics.low_rank.spectra import Spectrum

TOLERANCE = 0.02
"""How far from the target the multiply-accumulates may be, relative to it."""

_STEPS = (8, 1)


@dataclass(frozen=True)
class Split:
    """A model whose layers were split.

    Attributes:
        table: By layer that was split: path, type, form, channels between the halves, the most that there could be,
            the share of the energy that stays, and multiply-accumulates before and after.
        left: Layer → why it stayed whole.
        macs: Fraction of the model's multiply-accumulates that stayed.
    """

    table: list[dict[str, Any]]
    left: Mapping[str, str]
    macs: float


def find(
    module: nn.Module, feed: Mapping[str, Tensor], kept: Collection[str] = (), convolutions: Convolutions = "auto"
) -> Found:
    """List the layers that can be split, each of them tried.

    Args:
        module: In evaluation mode; left as it is.
        feed: Inputs of one forward pass, on the module's device.
        kept: Paths of modules that must not change.
        convolutions: How convolutions with a kernel are split.

    Raises:
        StageError: When the module cannot be copied, or weights are not finite.
    """
    return trial.sound(module, feed, layers.find(module, feed, kept, convolutions))


def decompose(
    module: nn.Module,
    found: Sequence[Layer],
    reading: Reading | None,
    watch: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda items: items,
) -> dict[Layer, Spectrum]:
    """Decompose layers: by what they give on rows, or by their weights where there are none.

    Raises:
        StageError: When there are no rows, or weights or outputs are not finite.
    """
    if reading is not None:
        return spectra.of_outputs(module, found, reading)
    return {layer: spectra.of_weights(module, layer) for layer in watch(found)}


def split(
    module: nn.Module,
    feed: Mapping[str, Tensor],
    found: Found,
    parts: Mapping[Layer, Spectrum],
    *,
    energy: float | None = None,
    keep_macs: float | None = None,
) -> Split:
    """Split layers in place, with as many channels between their halves as `energy` or `keep_macs` say.

    Args:
        module: In evaluation mode.
        feed: Inputs of one forward pass, on the module's device.
        found: Its layers.
        parts: Their spectra.
        energy: Share of each layer's energy that stays; or else
        keep_macs: Fraction of the model's multiply-accumulates that stays.

    Raises:
        StageError: When no layer would become smaller, or the fraction cannot be met within 2 %; the nearest is named.
    """
    lost = {layer: spectrum.lost() for layer, spectrum in parts.items()}
    whole = macs.count(module, feed)
    left: dict[str, str] = {}
    if keep_macs is not None:
        chosen = _budgeted(found.layers, lost, whole, keep_macs)
    else:
        assert energy is not None, "one of both is given"
        chosen, left = ranks.by_energy(found.layers, lost, energy, _STEPS[0])
    if not chosen:
        told = "; ".join(f"{path}: {reason}" for path, reason in list({**left, **found.left}.items())[:5])
        raise StageError(f"no layer becomes smaller by a split ({told})", then="keep less, or leave low_rank out")
    table = [_made(module, layer, parts[layer], rank) for layer, rank in chosen.items()]
    split_ = {layer.path for layer in chosen}
    for layer in found.layers:
        if layer.path not in split_:
            left.setdefault(layer.path, "it loses more by a split than others for the same work")
    return Split(table, {**found.left, **left}, macs.count(module, feed) / max(1, whole))


def _budgeted(found: Sequence[Layer], lost: Mapping[Layer, Tensor], whole: int, keep: float) -> dict[Layer, int]:
    """Choose ranks for a fraction of the work: multiples of 8 where these meet it, else any; none if no split helps."""
    rest = whole - sum({layer.path: layer.cost for layer in found}.values())
    nearest = math.inf
    for step, slack in itertools.product(_STEPS, (0.0, TOLERANCE)):
        chosen = ranks.by_cost(found, lost, keep * (1 + slack) * whole - rest, step)
        spared = sum(layer.cost - layer.rank_cost * rank for layer, rank in chosen.items())
        fraction = 1 - spared / max(1, whole)
        if not chosen:
            continue
        if abs(fraction - keep) <= TOLERANCE * keep:
            return chosen
        nearest = min(nearest, fraction, key=lambda value: abs(value - keep))
    if nearest == math.inf:
        return {}
    raise StageError(
        f"cannot keep {100 * keep:.3g}% of the multiply-accumulates by splits; "
        f"the nearest possible is {100 * nearest:.3g}%",
        then=f"set macs: {nearest:.3g}, or shorten keep",
    )


def _made(module: nn.Module, layer: Layer, spectrum: Spectrum, rank: int) -> dict[str, Any]:
    """Split one layer, and describe it."""
    old: Any = module.get_submodule(layer.path)
    structure.change(module, [Factor(path=layer.path, form=layer.form, rank=rank)])
    spectra.fill(module.get_submodule(layer.path), layer, spectrum, old.bias)
    return {
        "layer": layer.path,
        "type": type(old).__name__,
        "form": layer.form,
        "rank": rank,
        "full": layer.full,
        "energy": 1 - float(spectrum.lost()[rank]),
        "before": layer.cost,
        "after": layer.rank_cost * rank,
    }


__all__ = ["TOLERANCE", "Convolutions", "Found", "Split", "decompose", "find", "split"]
