"""The learned grids written into the ONNX graph of the float module, by the inserter of static quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics import onnxfile
from modelpack.numerics.qat.correspondence import Correspondence
from modelpack.numerics.quantization import embedding, layers, qdq
from modelpack.numerics.quantization.extent import Extent
from modelpack.numerics.quantization.hardware import PROFILES
from modelpack.numerics.quantization.rewriting import alignment
from modelpack.numerics.quantization.rewriting.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

    from modelpack.numerics.export import Exported
    from modelpack.numerics.fake_quantization.quantizers import Quantizers
    from modelpack.numerics.fake_quantization.twin import Quantized
    from modelpack.numerics.grid import Grid
    from modelpack.numerics.quantization.qdq import Marks

_PROFILE = PROFILES["vnni"]
"""What the model was trained for: unsigned bytes, as x86 processors take them."""


def write(exported: Exported, student: Quantized) -> ModelProto:
    """Quantize a graph as its torch model was trained.

    Args:
        exported: The translated float module; its weights lie on their grids, so that the inserter finds their scales.
        student: The model, as it was loaded.

    Raises:
        StageError: When the graph rounds other values than the model does.
    """
    quantizers = student.grids()
    prepared, _ = prepare(exported.model)
    known = layers.choose(prepared, "static", None, ())
    weights = Correspondence(student.floating, exported, prepared).weights(known)
    pairs = {name: (held.input, held.path) for name, held in weights.items()}
    known = [layer for layer in known if pairs.get(layer.name) in quantizers.places.layers]
    lookups = [layer.name for layer in known if layer.operator == "Gather"]
    chosen = [layer.name for layer in known if layer.operator != "Gather"]
    prepared = embedding.quantize(prepared, lookups)
    marked = _marks(prepared, chosen, quantizers)
    if marked is None or {pairs[layer.name] for layer in known} != set(quantizers.places.layers):
        raise StageError(
            f"the graph for opset {onnxfile.opset(exported.model)} rounds other values than the model was trained to",
            then=f"set `opset: {quantizers.places.opset}`, for which it was traced",
        )
    extents = {name: _extent(quantizers.grids[name]) for name in marked.measured}
    made = qdq.quantize(prepared, chosen, marked, extents, profile=_PROFILE)
    made = onnxfile.unshaped(alignment.aligned(made, _PROFILE.channels))
    onnxfile.check(made)
    return made


def _marks(model: ModelProto, chosen: Sequence[str], quantizers: Quantizers) -> Marks | None:
    """Mark the values that the model rounds, or give None when the graph cannot."""
    wanted = {name: spot.grid for name, spot in quantizers.places.activations.items()}
    for neighbours in (True, False):
        marked = qdq.marks(model, chosen, neighbours=neighbours)
        grids = {**{name: name for name in marked.measured}, **marked.carried}
        # A value that torch has not is rounded where it moves to.
        elsewhere = (set(grids) - set(wanted)) & set(quantizers.grids)
        if wanted == {name: spot for name, spot in grids.items() if name not in elsewhere}:
            return marked
    return None


def _extent(grid: Grid) -> Extent:
    """Give the range whose 256 steps are a grid; exact, since both bounds are whole numbers of steps."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return Extent((0 - zero_point) * scale, (255 - zero_point) * scale)
