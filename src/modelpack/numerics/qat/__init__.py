"""Quantization-aware training: weights learn to live on the grids that integer kernels compute on.

1. `prepare`: batch norms are folded (`folding`); the model is traced and translated, and the values that the integer
   kernels will round are found in the trace (`places`).
2. `observe`: the ranges of activations are seen on some rows.
3. `learning`: the trace with rounding put in, sharing the module's tensors, is what trains; scales are learned (LSQ,
   Esser et al. 2019, arXiv 1902.08153) or follow the ranges.
4. `finish`: weights are left on their grids, and the grids are written down.
5. `writing`: the export translates the float module as always, and inserts the learned grids with the same code as
   static quantization; so the file has the form that onnxruntime fuses, and nothing depends on how the exporter
   translates fake quantization. `agreement` compares both, value by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import export, models, tracing
from modelpack.numerics.calling import call
from modelpack.numerics.fake_quantization import rounding, twin
from modelpack.numerics.fake_quantization.quantizers import Quantizers
from modelpack.numerics.grid import Grid
from modelpack.numerics.qat import folding, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from modelpack.numerics.export import Exported
    from modelpack.numerics.fake_quantization.twin import Quantized, Rounding, Weighing
    from modelpack.numerics.qat.places import Found
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

OPSET = 20
"""Operators that the model is traced for; the export's default."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to be rounded.

    Attributes:
        module: The float module, batch norms folded.
        exported: Its trace and graph.
        found: Where it is rounded, and which layers stay float.
        folded: Paths of the folded batch norms.
    """

    module: nn.Module
    exported: Exported
    found: Found
    folded: tuple[str, ...]

    def rounded(
        self, device: torch.device, bytes_: Mapping[str, Rounding], channels: Mapping[str, Weighing]
    ) -> Quantized:
        """Put rounding modules into the trace, on a device."""
        traced = twin.Traced(
            self.module.to(device),
            tracing.on_device(self.exported.program, device),
            tuple(item.name for item in self.exported.model.graph.input),
            tuple(item.name for item in self.exported.model.graph.output),
        )
        made = twin.rounded(traced, self.found.places, bytes_, channels)
        return made.to(device)


def prepare(
    module: nn.Module,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, Any],
    *,
    exclude: Sequence[str],
    feed: Feed,
    seed: int,
) -> Prepared:
    """Fold batch norms, in place, and find out where the model is rounded.

    Args:
        module: A float model on the CPU, in evaluation mode.
        inputs: Its inputs.
        outputs: Its outputs as in ``signature.json``.
        exclude: Patterns of names of layers to leave alone.
        feed: A few rows.
        seed: Seed of the rows to trace with.

    Raises:
        StageError: When torch cannot trace the model, a pattern matches no layer, or no layer can be quantized.
    """
    example = tracing.traceable(feed, inputs, seed)
    exported = export.export(module, example, inputs, outputs, OPSET)
    folded = folding.fold(module, exported.program)
    if folded:
        exported = export.export(module, example, inputs, outputs, OPSET)
    found = places.find(module, exported, exclude, feed)
    if not found.places.activations and not found.places.weights:
        told = "; ".join(f"{layer.name}: {layer.reason}" for layer in found.layers[:5])
        raise StageError("the model has no layer that can be quantized", then=told or "it has no layer with weights")
    return Prepared(module, exported, found, tuple(folded))


def observe(prepared: Prepared, feeds: Iterable[Feed], share: float, device: torch.device) -> Quantized:
    """See the ranges of activations.

    Args:
        prepared: The model.
        feeds: Rows.
        share: Per cent of the values that a range holds; all for 100.
        device: Where the model runs.

    Returns:
        A model whose grids follow its activations.

    Raises:
        StageError: When there are no rows, or an activation is not finite, or always the same number.
    """
    spots = prepared.found.places.activations.values()
    bytes_ = {name: rounding.ObservedBytes(share) for name in sorted({spot.grid for spot in spots})}
    channels = {name: rounding.Channels(axis) for name, axis in prepared.found.places.weights.items()}
    student = prepared.rounded(device, bytes_, channels).eval()
    count = 0
    with torch.no_grad(), models.blamed("the model fails on the observed rows"):
        for count, feed in enumerate(feeds, 1):  # noqa: B007 - counted to know that there were rows
            call(student, models.tensors(feed, device))
    if count == 0:
        raise StageError("the data hold no rows to observe")
    for name, module in bytes_.items():
        _check(prepared, name, module)
    return student


def _check(prepared: Prepared, name: str, seen: rounding.ObservedBytes) -> None:
    low, high = float(seen.low), float(seen.high)
    graph = prepared.exported.model.graph
    reader = next((node.name for node in graph.node if name in node.input), name)
    if not (torch.isfinite(seen.low) and torch.isfinite(seen.high)):
        raise StageError(
            f"the activation '{name}' is not finite on the observed rows",
            where=reader,
            then="exclude the layers that read it, or mend the model or the data",
        )
    if low == high:
        raise StageError(
            f"the activation '{name}' is {low:g} everywhere on the observed rows: it carries nothing to round",
            where=reader,
            then=f"observe more rows, or `exclude: ['{reader}']`; a dead layer is better pruned",
        )


def learning(prepared: Prepared, observed: Quantized, steps: int | None, device: torch.device) -> Quantized:
    """Give the model that trains.

    Args:
        prepared: The model.
        observed: The same, its ranges seen.
        steps: Training steps in which the grids go on following the activations; None to learn their scales.
        device: Where the model runs.
    """
    if steps is not None:
        for module in observed.bytes.values():
            assert isinstance(module, rounding.ObservedBytes)
            module.follow(steps)
        return observed
    weights = prepared.found.places.weights
    return prepared.rounded(
        device,
        {name: rounding.LearnedBytes(*module.grid()) for name, module in observed.bytes.items()},
        {
            name: rounding.LearnedChannels(module.scales(prepared.module.get_parameter(name)), weights[name])
            for name, module in observed.channels.items()
        },
    )


@torch.no_grad()
def finish(prepared: Prepared, student: Quantized) -> Quantizers:
    """Leave weights and biases on their grids, in place, and write the grids of activations down."""
    student.eval()
    grids = {}
    for name, rounder in student.bytes.items():
        scale, zero_point = rounder.grid()
        grids[name] = Grid(np.float32(float(scale)), np.uint8(int(zero_point)))
    places, module = prepared.found.places, prepared.module
    scales = {}
    for name, weighing in student.channels.items():
        weights = module.get_parameter(name)
        weights.copy_(weighing(weights))
        scales[name] = weighing.scales(weights)
    for name, (value, path) in prepared.found.biases.items():
        _settle(module.get_parameter(name), scales[path].double() * float(grids[places.activations[value].grid].scale))
    return Quantizers(places, grids)


def _settle(bias: Tensor, steps: Tensor) -> None:
    """Round a bias to the grid of the products that it is added to, as integer kernels do.

    Left out, the difference of half such a step would tip one activation in a thousand into the next one, and every
    layer behind would add to that.
    """
    bias.copy_((bias.double() / steps).round() * steps)
