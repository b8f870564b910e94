"""Models with nothing wrong: floating point and quantized, from torch, from onnxruntime's quantizer, by hand, and the
small ones that come with the onnx package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from failures import Case, attention, convolutions, dynamic, plain_depthwise, products, static
from modelpack.artifact import Artifact
from modelpack.numerics import onnxfile, prediction, rows
from modelpack.numerics.quantization import engine
from modelpack.numerics.quantization.settings import Evidence, Settings
from onnx_support import calibrated

SHIPPED = (
    "Conv1d", "Conv2d", "Conv2d_depthwise", "Conv2d_groups", "Conv2d_strided", "Conv3d", "ConvTranspose2d", "Embedding",
    "MaxPool2d", "Softmax", "PixelShuffle", "Sigmoid", "ELU",
)  # fmt: skip
"""Tests of the onnx package that were converted from torch's, and that onnxruntime has operators for."""


def by_hand() -> dict[str, Case]:
    """Hand-written graphs, and what onnxruntime's quantizer makes of them with good settings."""
    spared = ["query", "key", "value", "out"]
    return {
        "hand/convolutions": convolutions(),
        "hand/products": products(),
        "hand/attention": attention(),
        "hand/depthwise": plain_depthwise(),
        "ort/convolutions static": static(convolutions(width=32)),
        "ort/depthwise static": static(plain_depthwise(64)),
        "ort/products static": static(products()),
        "ort/products dynamic": dynamic(products(), per_channel=True),
        "ort/attention static": static(attention(64), nodes_to_quantize=spared),
        "ort/attention dynamic": dynamic(attention(64), per_channel=True),
        # What is near to a failure, and is none.
        "ort/first layer in float": static(convolutions(width=32), nodes_to_exclude=["conv0"]),
        "ort/one scale for channels alike": static(plain_depthwise(64), per_channel=False),
        "ort/narrowed for avx2": replace(static(products(), reduce_range=True), target="avx2"),
    }


def shipped() -> dict[str, Case]:
    """Graphs that the onnx package brings for testing runtimes."""
    home = Path(onnx.__file__).parent / "backend/test/data/pytorch-converted"
    return {f"onnx/{name}": _made_up(onnx.load(home / f"test_{name}" / "model.onnx")) for name in SHIPPED}


def _made_up(model: onnx.ModelProto) -> Case:
    case = Case(model, None)
    return Case(model, None, rows.sample(case.subject().inputs, 4, 0))


METHODS = {"cnn": ("static", "weight_only", "float16"), "encoder": ("static", "dynamic", "weight_only", "float16")}


def from_torch(exported: Mapping[str, Artifact]) -> dict[str, Case]:
    """Quantize exported nets by every method that suits them."""
    found = {}
    for name, methods in METHODS.items():
        artifact = exported[name]
        specs, _ = prediction.signature(artifact)
        plain = onnxfile.read(artifact.file("model.onnx"))
        feed = rows.sample(specs, 16, 5)
        found[f"torch/{name}"] = Case(plain, None, feed)
        for method in methods:
            for correction in ("none", "bias") if method == "static" else ("none",):
                calibration = calibrated(plain, [feed]) if method == "static" else None
                evidence = Evidence(lambda _label, _limit, feed=feed: iter([feed]), calibration)
                made = engine.quantize(plain, Settings(method=method, correction=correction), evidence)
                told = f" with {correction}" * (correction != "none")
                found[f"torch/{name} {method}{told}"] = Case(made.outcome.model, plain, feed)
    return found
