"""onnxsim's pruners as its documentation says to call them: they cut exported files, and train nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import onnx

from modelpack.numerics import graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto
    from rows import Feed

    Cut = Callable[[ModelProto, Sequence[Feed], float], ModelProto]

CALIBRATION = 64
"""Rows that the calibrated pruner looks at; it holds what all layers read at once."""


def by_norm(model: ModelProto, _feeds: Sequence[Feed], sparsity: float) -> ModelProto:
    """Remove the channels of each layer whose weights have the smallest norm."""
    import onnxsim

    return onnxsim.apply_structured_pruning(model, sparsity=sparsity)


def by_wanda(model: ModelProto, feeds: Sequence[Feed], sparsity: float) -> ModelProto:
    """The same by norm times what comes in, over some rows."""
    import onnxsim

    return onnxsim.apply_structured_wanda_pruning(model, list(feeds), sparsity=sparsity)


def reaching(keep: float, cut: Cut, original: Path, feeds: Sequence[Feed]) -> ModelProto:
    """Cut as little as leaves at most a fraction of the multiply-accumulates, in steps of 1 % of the channels.

    Raises:
        ValueError: When even 99 % leave more.
    """
    whole = graph.facts(onnx.load(original)).macs
    low, high, found = 0, 99, None
    while high - low > 1:
        middle = (low + high) // 2
        model = cut(onnx.load(original), feeds, middle / 100)
        if graph.facts(model).macs <= keep * whole:
            high, found = middle, model
        else:
            low = middle
    if found is None:
        raise ValueError(f"{keep:.0%} of the multiply-accumulates cannot be reached")
    return found


def on_files(keep: float) -> Mapping[str, Callable[[Path, Sequence[Feed]], ModelProto]]:
    """Give onnxsim's ways of reaching a fraction of the multiply-accumulates."""
    ways: Mapping[str, Cut] = {"onnxsim, norm": by_norm, "onnxsim, Wanda": by_wanda}
    return {way: partial(reaching, keep, cut) for way, cut in ways.items()}
