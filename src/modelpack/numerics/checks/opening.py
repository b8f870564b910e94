"""Models and rows to examine: files that are not trusted, and made-up rows within what a model says it takes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics import graph, onnx_import, onnxfile, rows, runtime
from modelpack.numerics.checks.padding import mask_of
from modelpack.numerics.checks.subject import opened

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnx import ModelProto

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

ROWS = 8
"""How many rows are made up."""

SIZES = (rows.DYNAMIC_SIZE, 32, 64, 128, 224)
"""What is tried for dynamic dimensions besides the rows; convolutions may need more than a few."""

MOST_BYTES = 2**29
"""A file may claim inputs of any size: rows that would take more are not made up."""


def read(path: Path, device: str = "cpu") -> tuple[ModelProto, dict[str, TensorSpec]]:
    """Read an ONNX file from anywhere.

    Returns:
        The graph and its inputs, in its order.

    Raises:
        StageError: When it is no sound ONNX model, reaches for tensors outside its directory, or crashes onnxruntime.
    """
    model, _ = onnx_import.read(path)
    inputs = onnx_import.specs(graph.signature(model)["inputs"], str(path))
    with onnxfile.loadable(model) as place:
        if not runtime.survives(place, device):
            raise StageError(f"onnxruntime {runtime.ort.__version__} crashes when it opens the file", where=str(path))
    return model, inputs


def made_up(model: ModelProto, inputs: Mapping[str, TensorSpec], seed: int, device: str = "cpu") -> list[Feed]:
    """Make up rows that a model runs on; masks count every position.

    Raises:
        StageError: When it runs on none that were tried, with the first reason.
    """
    named = {name for spec in inputs.values() for name in spec.dynamic.values()} - {rows.batch_name(inputs)}
    session, refusal, over = opened(model, device), None, time.monotonic() + runtime.PATIENCE
    for size in SIZES if named else SIZES[:1]:
        sizes = dict.fromkeys(named, size)
        _check_bytes(inputs, sizes)
        feed = rows.sample(inputs, ROWS, seed, sizes)
        mask = mask_of(inputs)
        if mask is not None:
            feed[mask.name] = np.ones_like(feed[mask.name])
        try:
            runtime.execute(session, feed, seconds=max(over - time.monotonic(), 1.0))
        except StageError as error:
            refusal = refusal or error
            if time.monotonic() > over:
                break
        else:
            return [feed]
    assert refusal is not None, "either one was run, or the first was refused"
    raise refusal


def tried(model: ModelProto, feed: Feed, device: str = "cpu") -> None:
    """Run a model once on real rows.

    Raises:
        StageError: When it fails on them, or gives no answer in time.
    """
    runtime.execute(opened(model, device), feed, seconds=runtime.PATIENCE)


def _check_bytes(inputs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> None:
    counted = {**sizes, rows.batch_name(inputs) or "": ROWS}
    needed = sum(math.prod(spec.sizes(counted)) * np.dtype(spec.dtype).itemsize for spec in inputs.values())
    if needed > MOST_BYTES:
        raise StageError(f"made-up rows would take {needed / 2**30:.1f} GiB")
