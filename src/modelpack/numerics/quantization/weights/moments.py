"""Second moments of layers' inputs, summed over any number of rows in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from modelpack.errors import StageError
from modelpack.numerics import differences, masks, onnxfile, rows, runtime
from modelpack.numerics import graph as graphs
from modelpack.numerics.quantization.calibration import hidden
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.quantization.settings import Evidence
    from modelpack.numerics.rows import Feed

    Reals = NDArray[np.float64]

BUDGET = 512 * 2**20
"""Bytes of moments that one pass over the rows gathers."""


def gather(model: ModelProto, widths: Mapping[str, int], evidence: Evidence, budget: int = BUDGET) -> dict[str, Reals]:
    """Sum ``x xᵀ`` over the last axis of tensors; padded positions do not count.

    Args:
        model: A prepared graph.
        widths: Tensor → size of its last axis, ``k``.
        evidence: Rows, and where the model runs.
        budget: Most bytes of moments in one pass.

    Returns:
        Tensor → moment ``(k, k)``.

    Raises:
        StageError: When there are no rows, or a tensor holds NaN or infinity.
    """
    found: dict[str, Reals] = {}
    for names in _passes(widths, budget):
        sums = {name: torch.zeros((widths[name], widths[name]), dtype=torch.float64) for name in names}
        with onnxfile.loadable(differences.tapped(model, names)) as place:
            opened = runtime.session(place, evidence.device)
            for feed, real, padded in _readings(model, names, evidence):
                for name, values in runtime.execute(opened, feed, names).items():
                    inputs = _counted(values, real if name in padded else None, evidence.device)
                    sums[name] += (inputs.T @ inputs).double().cpu()
        for name, total in sums.items():
            _check(model, name, total)
            found[name] = total.numpy()
    return found


def _passes(widths: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Share tensors out so that a pass gathers at most `budget` bytes, or one moment."""
    names: list[str] = []
    room = budget
    for name, width in widths.items():
        if names and 8 * width**2 > room:
            yield names
            names, room = [], budget
        names.append(name)
        room -= 8 * width**2
    if names:
        yield names


def _readings(
    model: ModelProto, names: list[str], evidence: Evidence
) -> Iterator[tuple[Feed, NDArray[np.bool_] | None, Collection[str]]]:
    """Give each feed, which positions are real, and the tensors whose leading axes are those positions."""
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graphs.signature(model)["inputs"].items()}
    mask = masks.chosen("auto", inputs)
    padded: Collection[str] | None = None
    for feed in rows.peeked(evidence.read("see inputs of layers", None), inputs)[1]:
        if mask is None:
            yield feed, None, ()
            continue
        if padded is None:
            padded = set(hidden.aligned(model, names, mask, inputs, feed, device=evidence.device))
        yield feed, masks.real(mask, feed), padded


def _counted(values: NDArray[np.generic], real: NDArray[np.bool_] | None, device: str) -> torch.Tensor:
    """Give the rows that count, ``(rows, k)``."""
    width = values.shape[-1]
    if real is not None:
        values = values.reshape(real.size, -1, width)[real.reshape(-1)]
    return torch.from_numpy(np.ascontiguousarray(values.reshape(-1, width))).to(device).float()


def _check(model: ModelProto, name: str, total: torch.Tensor) -> None:
    if not bool(total.isfinite().all()):
        maker = onnxfile.producers(model.graph).get(name)
        raise StageError(
            f"the activation '{name}' is not finite on the calibration rows",
            where=maker.name if maker is not None else name,
            then="exclude the layers that read it, or mend the model or the data",
        )
