"""The weight-only method: weights of 8 or 4 bits in blocks, activations left in float.

Made for files and memory: a product with few rows waits for its weights and becomes faster, one with many does not.
Matrix products and embeddings compute on what is stored; convolutions are only stored in fewer bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper

from modelpack.errors import StageError
from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.quantization import embedding
from modelpack.numerics.quantization.layers import channel_axis
from modelpack.numerics.quantization.settings import Outcome
from modelpack.numerics.quantization.tables import Tables
from modelpack.numerics.quantization.weights import blocked, blocks, gptq, hqq, lookup, moments, nbits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Settings
    from modelpack.numerics.quantization.weights.blocks import Blocks

WIDEST = 8192
"""Inputs of one output above which `gptq` leaves a layer to `hqq`: the moment would take over half a gigabyte."""


@dataclass
class _Table:
    """Weights that some layers share, all in the same direction.

    Attributes:
        stem: Begins the names of what they become.
        weights: ``(n, k)``: one row per output, or per row that is looked up.
        sources: What the products among the layers read.
    """

    stem: str
    weights: NDArray[np.floating]
    sources: list[str] = field(default_factory=list)


def quantize(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Round the weights of the chosen layers.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers, chosen.
        settings: What to do.
        evidence: Rows to see the layers' inputs on, for ``gptq``.

    Raises:
        StageError: When there are no rows for ``gptq``, or they lead to NaN or infinity; or when the graph cannot be
            converted to the opset that blocks need.
    """
    chosen = {layer.name: layer for layer in found if layer.quantized}
    if settings.bits == 8:
        model = embedding.quantize(model, [name for name, layer in chosen.items() if layer.operator == "Gather"])
        chosen = {name: layer for name, layer in chosen.items() if layer.operator != "Gather"}
    notes = []
    if settings.form == "qdq" and onnxfile.opset(model) < blocked.OPSET:
        model = _converted(model)
        notes.append(f"converted to opset {blocked.OPSET}, the first with blocks")
    tables = _tables(model, chosen)
    rounded, wide = _rounded(model, tables, settings, evidence)
    made = _written(model, chosen, rounded, settings)
    if any(node.op_type == "MatMulNBits" for node in made.graph.node):
        notes.append("MatMulNBits belongs to onnxruntime: other runtimes read `form: qdq`")
    stored = [name for name, layer in chosen.items() if layer.operator in ("Conv", "ConvTranspose")]
    if stored:
        notes.append(
            f"the weights of {len(stored)} convolutions are only stored in 8 bits: they become floats while the model "
            "is loaded, so that memory and speed are those of the float model"
        )
    told = (f"too many inputs for gptq, rounded by hqq instead: {', '.join(wide)}",) if wide else ()
    return Outcome(made, notes=tuple(notes), warnings=told)


def _converted(model: ModelProto) -> ModelProto:
    try:
        return onnx.version_converter.convert_version(model, blocked.OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise StageError(
            f"the graph cannot be converted to opset {blocked.OPSET}, which `form: qdq` needs: {runtime.reason(error)}",
            then="use `form: nbits`, or export the model again with a newer opset",
        ) from error


def _tables(model: ModelProto, chosen: Mapping[str, Layer]) -> dict[str, _Table]:
    """Find the weights of products and lookups, by the stem of their new names."""
    fixed = onnxfile.constants(model.graph)
    tables: dict[str, _Table] = {}
    for node in model.graph.node:
        if node.name not in chosen or node.op_type in ("Conv", "ConvTranspose"):
            continue
        stem = _stem(node, chosen[node.name])
        if stem not in tables:
            values = onnxfile.array(fixed[chosen[node.name].weights]).astype(np.float32)
            tables[stem] = _Table(stem, values if stem.endswith(":rows") else values.T)
        if node.op_type != "Gather":
            tables[stem].sources.append(node.input[0])
    return tables


def _stem(node: NodeProto, layer: Layer) -> str:
    by_rows = node.op_type == "Gather" or channel_axis(node) == 0
    return f"{layer.weights}:{'rows' if by_rows else 'columns'}"


def _rounded(
    model: ModelProto, tables: Mapping[str, _Table], settings: Settings, evidence: Evidence
) -> tuple[dict[str, Blocks], list[str]]:
    """Round every table; gives also the names of those that were too wide."""
    bits, size = settings.bits, settings.group
    by_moment = [table for table in tables.values() if settings.rounding == "gptq" and table.sources]
    wide = [table.stem for table in by_moment if table.weights.shape[1] > WIDEST]
    widths = {name: table.weights.shape[1] for table in by_moment if table.stem not in wide for name in table.sources}
    seen = moments.gather(model, widths, evidence)
    made: dict[str, Blocks] = {}
    for stem in evidence.track(list(tables), "round weights"):
        table = tables[stem]
        if settings.rounding == "nearest":
            made[stem] = blocks.nearest(table.weights, bits, size)
        elif settings.rounding == "hqq" or not table.sources or stem in wide:
            made[stem] = hqq.rounded(table.weights, bits, size)
        else:
            total = np.sum([seen[name] for name in table.sources], axis=0)
            made[stem] = gptq.rounded(table.weights, total, bits, size)
    return made, wide


def _written(
    model: ModelProto, chosen: Mapping[str, Layer], rounded: Mapping[str, Blocks], settings: Settings
) -> ModelProto:
    """Copy a graph with the new weights in it."""
    twin = onnxfile.copied(model)
    fixed, tables = onnxfile.constants(twin.graph), Tables(twin.graph)
    product = nbits.product if settings.form == "nbits" else blocked.product
    nodes: list[NodeProto] = []
    for node in twin.graph.node:
        if node.name not in chosen:
            nodes.append(node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            name = node.input[1]
            values = onnxfile.array(fixed[name]).astype(np.float32)
            node.input[1] = tables.int8(name, values, 0 if node.op_type == "Conv" else 1)
            nodes.append(node)
        else:
            stem = _stem(node, chosen[node.name])
            write = lookup.rows if node.op_type == "Gather" else product
            nodes += write(tables, node, stem, rounded[stem])
    tables.finish(nodes)
    if any(node.domain == nbits.DOMAIN for node in nodes):
        _import(twin, nbits.DOMAIN)
    return twin


def _import(model: ModelProto, domain: str) -> None:
    if all(item.domain != domain for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, 1))
