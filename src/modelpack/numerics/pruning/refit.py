"""Layers that read removed channels are fitted to what they gave before, by least squares on the channels that stay.

He et al. 2017 (arXiv 1707.06168) go from layer to layer, each fitted on what the pruned layers before it give. Here the
unpruned model alone is read, once for all layers: each is the best it can be on its own, and none learns to make up for
rows that happened to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from modelpack.numerics import matrices
from modelpack.numerics.fitting import READABLE, Layer, moments, refit
from modelpack.numerics.pruning import surgery

if TYPE_CHECKING:
    from modelpack.numerics.fitting import Reading
    from modelpack.numerics.pruning.plan import Removal

DAMPING = 0.01
"""Share of the mean square of a layer's inputs that is added to each, against chance."""

LARGEST = 2**30
"""Bytes of a moment: layers that read more inputs than this allows keep their weights."""


Watch = Callable[[Sequence[Layer]], Iterable[Layer]]
"""Passes layers through while they are fitted, to show progress."""

Fit = Callable[[nn.Module, "Sequence[Removal]"], tuple[nn.Module, tuple[str, ...]]]
"""Prepares a model for the loss of channels.

Given the unpruned model, in evaluation mode, and what will go, it gives a copy that does without the channels as well
as it can, although they are still there; and the paths of the layers that it changed.
"""


def nothing(module: nn.Module, _removals: Sequence[Removal]) -> tuple[nn.Module, tuple[str, ...]]:
    """Leave a model as it is: a `Fit`."""
    return module, ()


def by_least_squares(reading: Reading, watch: Watch = lambda layers: layers) -> Fit:
    """Fit the layers that lose inputs to what they give on some rows.

    The fit raises a StageError where what a layer reads is not finite.
    """

    def fit(module: nn.Module, removals: Sequence[Removal]) -> tuple[nn.Module, tuple[str, ...]]:
        silent, made = surgery.twin(module), []
        for removal in removals:
            surgery.silence(silent, removal.group.members, removal.roots)
        quiet: dict[str, Any] = dict(silent.named_modules())
        for share in moments.shares(_readers(module, removals)):
            seen = moments.gather(module, share, reading, whole=True)
            for layer in watch([item for item in share if item.name in seen]):
                path = layer.name.rpartition(".")[0]
                ours = Layer(layer.name, (quiet[path],))
                ours.put(refit.refitted(layer.matrix(), ours.matrix(), seen[layer.name], DAMPING))
                made.append(path)
        return silent, tuple(made)

    return fit


def _readers(module: nn.Module, removals: Iterable[Removal]) -> list[Layer]:
    """List the layers that lose inputs, and can be fitted."""
    modules: dict[str, Any] = dict(module.named_modules())
    embeddings = matrices.shared(module)
    paths = {
        member.path
        for removal in removals
        if removal.roots
        for member in removal.group.members
        if member.side == "in" and isinstance(modules[member.path], READABLE)
    }
    users: dict[int, list[str]] = {}
    for path, layer in modules.items():
        if path in paths and not matrices.foreign(layer, embeddings):
            users.setdefault(id(layer.weight), []).append(path)
    found = [Layer(f"{names[0]}.weight", tuple(modules[name] for name in names)) for names in users.values()]
    return [layer for layer in found if moments.size(layer) <= LARGEST]
