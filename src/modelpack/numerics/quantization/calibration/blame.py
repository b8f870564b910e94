"""Where values that are not finite come from: a column of the data, a constant, or the layer that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics import differences, onnxfile, runtime
from modelpack.numerics.quantization.calibration import hidden

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from modelpack.numerics.rows import Feed

_AT_ONCE = 32
"""How many tensors one run hands back."""


def not_finite(model: ModelProto, name: str, feed: Feed, device: str) -> StageError:
    """Say what makes a tensor hold NaN or infinity.

    Args:
        model: A prepared graph.
        name: The tensor.
        feed: The rows on which it does.
        device: Where the model runs.

    Returns:
        An error that names a column of the data where that holds such values, else a constant of the graph, else the
        node that makes them of finite ones; nodes that only pass them on are not blamed.
    """
    for column, values in feed.items():
        if not _finite(values):
            return StageError(
                f"the calibration data hold NaN or infinity in '{column}'", then="mend or leave out those rows"
            )
    makers, floors = onnxfile.producers(model.graph), hidden.floors(model)
    fixed = {key: onnxfile.array(item) for key, item in onnxfile.constants(model.graph).items()}
    wrong = {key for key, values in fixed.items() if not _finite(values, least=-np.inf)}
    wrong |= _wrong(model, feed, floors, device)
    node = makers.get(name)
    while node is not None:
        before = next((item for item in node.input if item in wrong), None)
        if before in fixed:
            return StageError(f"the weights '{before}' hold NaN or infinity", where=node.name, then="mend the model")
        if before is None or before not in makers:
            break
        node = makers[before]
    return StageError(
        "makes NaN or infinity of finite values on the calibration rows",
        where=node.name if node is not None else name,
        then="mend the model, or leave out the rows that overflow",
    )


def _wrong(model: ModelProto, feed: Feed, floors: Mapping[str, float], device: str) -> set[str]:
    """Name all values that are not finite when nothing is optimized, but for those that are meant to be."""
    names = [name for node in model.graph.node for name in _made(node)]
    found = set()
    with onnxfile.loadable(differences.tapped(model, names)) as place:
        opened = runtime.session(place, device, level="disabled")
        for start in range(0, len(names), _AT_ONCE):
            for name, values in runtime.execute(opened, feed, names[start : start + _AT_ONCE]).items():
                if not _finite(values, least=-np.inf if name in floors else None):
                    found.add(name)
    return found


def _made(node: NodeProto) -> list[str]:
    return [name for name in node.output if name]


def _finite(values: NDArray[np.generic], least: float | None = None) -> bool:
    """Whether all values are finite, or equal to `least`."""
    if values.dtype.kind != "f":
        return True
    sound = np.isfinite(values)
    return bool((sound if least is None else sound | (values == least)).all())
