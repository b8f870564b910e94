"""The largest magnitude of each channel (last axis) of some tensors, reduced inside the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from modelpack.numerics import masks, onnxfile, rows, runtime
from modelpack.numerics.quantization.calibration import blame, hidden

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

AXES_ARE_INPUTS = 18
"""First opset whose reductions take their axes as an input."""


def largest(
    model: ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    inputs: Mapping[str, TensorSpec],
    *,
    mask: str | None = None,
    device: str = "cpu",
) -> dict[str, NDArray[np.float32]]:
    """Find the largest magnitude of each channel over some rows.

    Args:
        model: A prepared graph.
        names: Its float32 tensors to look at, of two axes or more.
        feeds: The rows.
        inputs: What the model takes.
        mask: The input that tells padded positions, which then do not count.
        device: Where the model runs.

    Returns:
        Tensor → magnitudes, ``(channels,)``.

    Raises:
        StageError: When there are no rows, the model fails on them, or a tensor holds NaN or infinity.
    """
    if not names:
        return {}
    first, whole = rows.peeked(feeds, inputs)
    padded = hidden.aligned(model, names, mask, inputs, first, device=device) if mask is not None else {}
    reduced = _reduced(model, names, mask, padded)
    with onnxfile.loadable(reduced) as content:
        session = runtime.session(content, device, entries=runtime.AT_REST, planned=False)
    found: dict[str, NDArray[np.float32]] = {}
    del first
    for feed in whole:
        if mask is not None:
            masks.real(mask, feed)
        for name, values in zip(names, runtime.execute(session, feed).values(), strict=True):
            if not np.isfinite(values).all():
                raise blame.not_finite(model, name, feed, device)
            found[name] = np.maximum(found.get(name, np.float32(0)), values.astype(np.float32, copy=False))
    return found


def _reduced(
    model: ModelProto, names: Sequence[str], mask: str | None, padded: Mapping[str, tuple[int, int]]
) -> ModelProto:
    """Copy a model so that it gives the largest magnitudes, and nothing else."""
    twin = onnxfile.copied(model)
    graph = twin.graph
    newer = onnxfile.opset(model) >= AXES_ARE_INPUTS
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "modelpack.rows"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "modelpack.none"))
    del graph.output[:]
    if mask is not None:
        graph.node.append(helper.make_node("Cast", [mask], ["modelpack.real"], to=TensorProto.BOOL))
    for number, name in enumerate(names):
        stem, value = f"modelpack.channels.{number}", name
        if name in padded:
            axes, rank = padded[name]
            lead = [0] * axes if axes > 1 else [-1]
            shape = numpy_helper.from_array(np.array(lead + [1] * (rank - axes), np.int64), f"{stem}.shape")
            graph.initializer.append(shape)
            value = f"{stem}.kept"
            graph.node.append(helper.make_node("Reshape", ["modelpack.real", shape.name], [f"{stem}.real"]))
            graph.node.append(helper.make_node("Where", [f"{stem}.real", name, "modelpack.none"], [value]))
        graph.node.append(helper.make_node("Flatten", [value], [f"{stem}.flat"], axis=-1))
        graph.node.append(helper.make_node("Abs", [f"{stem}.flat"], [f"{stem}.size"]))
        source = [f"{stem}.size", "modelpack.rows"] if newer else [f"{stem}.size"]
        node = helper.make_node("ReduceMax", source, [stem], keepdims=0)
        if not newer:
            node.attribute.append(helper.make_attribute("axes", [0]))
        graph.node.append(node)
        graph.output.append(ValueInfoProto(name=stem))
    return twin
