"""The static method: activations on calibrated grids, then constants that are corrected for what rounding did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelpack.numerics import onnxfile, optimize
from modelpack.numerics.quantization import embedding, layers, qdq, ranges, reconstruction
from modelpack.numerics.quantization.settings import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.ranges import Extent
    from modelpack.numerics.quantization.settings import Evidence, Settings
    from modelpack.numerics.rows import Feed


def quantize(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Quantize weights and activations.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers, chosen.
        settings: What to do.
        evidence: Rows to calibrate on.

    Raises:
        StageError: When the rows do not fit, or hold or lead to NaN or infinity.
    """
    chosen = [layer.name for layer in found if layer.quantized and layer.operator != "Gather"]
    model = embedding.quantize(model, [layer.name for layer in found if layer.quantized and layer.operator == "Gather"])
    flows = settings.operators is None and not layers.has_attention(model.graph)
    marked = qdq.marks(model, chosen, neighbours=flows or "Conv" in (settings.operators or ()))
    plain = qdq.quantize(model, chosen, marked, _extents(model, marked.measured, settings, evidence))
    outcome = Outcome(plain)
    if settings.correction != "none":
        outcome = _corrected(model, plain, chosen, settings, evidence)
    floating = _floating(outcome.model, found)
    if not floating:
        return outcome
    told = f"these layers have 8-bit weights, but onnxruntime computes them in floating point: {', '.join(floating)}"
    return replace(outcome, warnings=(*outcome.warnings, told))


def _extents(model: ModelProto, names: Sequence[str], settings: Settings, evidence: Evidence) -> Mapping[str, Extent]:
    def passes(label: str) -> Iterable[Feed]:
        return evidence.read(label, None)

    seen = ranges.extents(model, names, passes, evidence.device)
    if settings.ranges == "percentile":
        seen = ranges.percentiles(model, seen, settings.percentile, passes, device=evidence.device)
    return seen


def _corrected(
    model: ModelProto, plain: ModelProto, chosen: Sequence[str], settings: Settings, evidence: Evidence
) -> Outcome:
    """Correct layers, unless the whole model does not gain from what each of its layers gained from."""
    feeds, twin = list(evidence.read("read rows to fit on", settings.correction_rows)), onnxfile.copied(plain)
    gains = reconstruction.reconstruct(
        model,
        twin,
        chosen,
        feeds,
        seed=evidence.seed,
        device=evidence.device,
        track=lambda names: evidence.track(names, "correct layers"),
    )
    before, after = (reconstruction.noise(model, made, feeds, evidence.device) for made in (plain, twin))
    kept = after <= before
    changed = sum(1 for gain in gains if gain.changed) if kept else 0
    return Outcome(
        twin if kept else plain,
        results={"correction": [gain.to_json() for gain in gains]},
        metrics={"quantize_corrected_layers": changed},
        warnings=()
        if kept
        else ("correction brought each layer closer to the float one, but not the model: it was left out",),
    )


def _floating(made: ModelProto, found: Iterable[Layer]) -> list[str]:
    """Name the layers whose rounded weights onnxruntime turns back into floats before it multiplies."""
    tuned = optimize.by_onnxruntime(made)
    unpacked = {node.input[0] for node in tuned.graph.node if node.op_type == "DequantizeLinear"}
    held = {f"{layer.weights}:{side}:quantized": layer for layer in found for side in ("rows", "columns")}
    return [held[name].name for name in sorted(unpacked & set(held))]
