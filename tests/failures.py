"""A corpus of quantized models that went wrong, each made the way the tools make it: by onnxruntime's own quantizer
where it does so by itself, by hand where another tool did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from modelpack.numerics import differences, graph, onnxfile, runtime
from modelpack.numerics.checks import Subject
from modelpack.numerics.silence import quiet
from modelpack.tensors import TensorSpec
from onnx_support import graph_of

FLOAT = TensorProto.FLOAT


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights that keep the size of what they are multiplied with."""
    fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def rows(*shape: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model, the float model it was made from, and rows."""

    model: onnx.ModelProto
    reference: onnx.ModelProto | None
    feed: dict[str, np.ndarray] = field(default_factory=dict)
    target: str = "vnni"

    def subject(self, *, compared: bool = True) -> Subject:
        described = graph.signature(self.model)["inputs"]
        inputs = {name: TensorSpec.model_validate(spec) for name, spec in described.items()}
        reference = self.reference if compared else None
        return Subject(self.model, inputs, [self.feed] if self.feed else [], reference, target=self.target)


# Float models


def convolutions(
    depth: int = 3, width: int = 16, size: int = 12, outputs: int = 10, *, positive: bool = False, bend: str = "Relu"
) -> Case:
    """A chain of convolutions, pooled into a linear head; with `positive` weights nothing cancels on the way."""
    nodes, held, name = [], {}, "x"
    for number in range(depth):
        kernel = weights(width, width, 3, 3, seed=number)
        if positive:
            kernel[0, 0, 0, 0] = 4
            kernel = np.abs(kernel) / np.abs(kernel).sum(axis=(1, 2, 3), keepdims=True)
        held |= {f"w{number}": kernel, f"b{number}": weights(width, 1, seed=50 + number)[:, 0] / 4}
        nodes += [
            helper.make_node("Conv", [name, f"w{number}", f"b{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4),
            helper.make_node(bend, [f"c{number}"], [f"r{number}"], f"bend{number}"),
        ]
        name = f"r{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], "head"),
    ]
    held |= {"v": weights(width, outputs, seed=90), "d": weights(outputs, 1, seed=91)[:, 0]}
    proto = graph_of(nodes, {"x": (["batch", width, size, size], FLOAT)}, {"y": ["batch", outputs]}, held)
    return Case(proto, None, {"x": rows(8, width, size, size)})


def plain_depthwise(width: int = 16) -> Case:
    """Expand, depthwise, project; nothing wrong with it."""
    proto = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "expand"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Conv", ["b", "k"], ["c"], "depthwise", group=width, pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["d"], "relu2"),
            helper.make_node("Conv", ["d", "v"], ["y"], "project"),
        ],
        {"x": (["batch", 8, 8, 8], FLOAT)},
        {"y": ["batch", 8, 8, 8]},
        {"w": weights(width, 8, 1, 1), "k": weights(width, 1, 3, 3, seed=1), "v": weights(8, width, 1, 1, seed=2)},
    )
    return Case(proto, None, {"x": rows(8, 8, 8, 8)})


def products(width: int = 64, outputs: int = 32) -> Case:
    """Two matrix products with a ReLU between them."""
    proto = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
        ],
        {"x": (["batch", width], FLOAT)},
        {"y": ["batch", outputs]},
        {"w": weights(width, width), "v": weights(width, outputs, seed=1)},
    )
    return Case(proto, None, {"x": rows(16, width)})


def attention(width: int = 32) -> Case:
    """One head of masked self-attention, pooled over the positions that count."""
    inputs = {"tokens": (["batch", "sequence", width], FLOAT), "attention_mask": (["batch", "sequence"], FLOAT)}
    nodes = [
        *(helper.make_node("MatMul", ["tokens", f"w_{part}"], [part], part) for part in ("query", "key", "value")),
        helper.make_node("Transpose", ["key"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["query", "turned"], ["scores"], "scores"),
        helper.make_node("Sub", ["attention_mask", "one"], ["absent"], "absent"),
        helper.make_node("Mul", ["absent", "large"], ["penalty"], "penalty"),
        helper.make_node("Unsqueeze", ["penalty", "axis_one"], ["wide"], "wide"),
        helper.make_node("Add", ["scores", "wide"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "value"], ["mixed"], "mixed"),
        helper.make_node("MatMul", ["mixed", "w_out"], ["out"], "out"),
        helper.make_node("Unsqueeze", ["attention_mask", "axis_two"], ["counted"], "counted"),
        helper.make_node("Mul", ["out", "counted"], ["kept"], "kept"),
        helper.make_node("ReduceSum", ["kept", "axis_one"], ["y"], "pool", keepdims=0),
    ]
    held = {f"w_{part}": weights(width, width, seed=at) for at, part in enumerate(("query", "key", "value", "out"))}
    held |= {"one": np.float32(1), "large": np.float32(10000), "axis_one": np.array([1]), "axis_two": np.array([2])}
    proto = graph_of(nodes, inputs, {"y": ["batch", width]}, held)
    mask = np.ones((6, 12), np.float32)
    mask[2:, 9:] = 0
    return Case(proto, None, {"tokens": rows(6, 12, width), "attention_mask": mask})


# What onnxruntime's quantizer makes of them


class _Reader(CalibrationDataReader):
    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self.left = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def static(case: Case, **settings: object) -> Case:
    """Let `quantize_static` work, on the rows of the case."""
    wanted = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "calibrate_method": CalibrationMethod.MinMax,
        **settings,
    }
    with tempfile.TemporaryDirectory() as place, quiet():
        before, after = Path(place) / "before.onnx", Path(place) / "after.onnx"
        onnx.save(case.model, before)
        quantize_static(before, after, _Reader(case.feed), **wanted)
        return Case(onnx.load(after), case.model, case.feed)


def dynamic(case: Case, **settings: object) -> Case:
    """Let `quantize_dynamic` work."""
    with tempfile.TemporaryDirectory() as place, quiet():
        before, after = Path(place) / "before.onnx", Path(place) / "after.onnx"
        onnx.save(case.model, before)
        quantize_dynamic(before, after, **settings)
        return Case(onnx.load(after), case.model, case.feed)


# The twelve


def little_quantized() -> Case:
    """The quantizer knew the linear layer only: none of the convolutions."""
    return static(convolutions(outputs=190), op_types_to_quantize=["Gemm"])


def not_smaller() -> Case:
    """Weights are rounded at every run, and stored as floats: what training with quantization exports."""
    return static(convolutions(), extra_options={"AddQDQPairToWeight": True})


def unused_weights() -> Case:
    """The float weights were forgotten beside the int8 ones."""
    made = static(convolutions(width=32))
    known = {item.name for item in made.model.graph.initializer} | set(onnxfile.producers(made.model.graph))
    made.model.graph.initializer.extend(item for item in made.reference.graph.initializer if item.name not in known)
    return made


def signed_activations() -> Case:
    """S8S8: signed activations, the default of older tools."""
    return static(convolutions(), activation_type=QuantType.QInt8)


def collapsed_depthwise() -> Case:
    """One scale for a depthwise convolution whose channels differ a thousandfold."""
    spread = np.geomspace(0.002, 2.0, 32).astype(np.float32)
    proto = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "expand"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Conv", ["b", "k"], ["c"], "depthwise", group=32, pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["d"], "relu2"),
            helper.make_node("Conv", ["d", "v"], ["y"], "project"),
        ],
        {"x": (["batch", 8, 8, 8], FLOAT)},
        {"y": ["batch", 8, 8, 8]},
        {
            "w": weights(32, 8, 1, 1),
            "k": weights(32, 1, 3, 3, seed=1) * spread[:, None, None, None],
            "v": weights(8, 32, 1, 1, seed=2) / spread[None, :, None, None],
        },
    )
    return static(Case(proto, None, {"x": rows(8, 8, 8, 8)}), per_channel=False)


def padded_batch() -> Case:
    """Calibrated on sentences without padding: the range of the scores knows nothing of the mask's -10000."""
    case = attention()
    return replace(
        static(replace(case, feed=case.feed | {"attention_mask": np.ones((6, 12), np.float32)})), feed=case.feed
    )


def batch_dependence() -> Case:
    """One row of large numbers, and dynamic ranges over the whole batch."""
    case = products()
    case.feed["x"][3] *= 200
    return dynamic(case, per_channel=True)


def worse_correction() -> Case:
    """Each layer's shift was measured in the quantized model and taken back, in all layers at once."""
    made = static(convolutions(depth=12, width=8, positive=True), per_channel=False)
    layers = [f"conv{number}" for number in range(12)]
    floats, rounded = (_values(model, layers, made.feed) for model in (made.reference, made.model))
    twin = onnxfile.copied(made.model)
    tensors = {item.name: item for item in twin.graph.initializer}
    for number, name in enumerate(layers):
        bias, scale = tensors[f"b{number}_quantized"], tensors[f"b{number}_quantized_scale"]
        shift = (floats[name].astype(np.float64) - rounded[name]).mean(axis=(0, 2, 3))
        moved = numpy_helper.to_array(bias) + np.rint(shift / numpy_helper.to_array(scale))
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.int32), bias.name))
    return Case(twin, made.reference, made.feed)


def _values(model: onnx.ModelProto, layers: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the outputs of some nodes."""
    names = {node.output[0]: node.name for node in model.graph.node if node.name in layers}
    with onnxfile.loadable(differences.tapped(model, list(names))) as place:
        got = runtime.execute(runtime.session(place, threads=1, level="disabled"), feed, list(names))
    return {names[name]: value for name, value in got.items()}


def levels_differ() -> Case:
    """A value is rounded twice, coarsely and then finely; onnxruntime merges both pairs into the fine one."""
    nodes = [
        *_pair("x", "coarse"),
        *_pair("coarse", "fine"),
        helper.make_node("DequantizeLinear", ["bytes", "step", "none"], ["w"], "weights"),
        helper.make_node("MatMul", ["fine", "w"], ["h"], "product"),
        *_pair("h", "y"),
    ]
    held = {"bytes": np.rint(rows(32, 16) * 40).clip(-127, 127).astype(np.int8), "step": np.float32(0.002)}
    held |= {"none": np.int8(0), "coarse:zero": np.uint8(128), "fine:zero": np.uint8(128), "y:zero": np.uint8(128)}
    held |= {"coarse:scale": np.float32(1.5), "fine:scale": np.float32(0.02), "y:scale": np.float32(0.02)}
    proto = graph_of(nodes, {"x": (["batch", 32], FLOAT)}, {"y": ["batch", 16]}, held)
    return Case(proto, None, {"x": rows(8, 32)})


def _pair(source: str, result: str) -> list[onnx.NodeProto]:
    grid = [f"{result}:scale", f"{result}:zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *grid], [f"{result}:bytes"], f"{result}:Q"),
        helper.make_node("DequantizeLinear", [f"{result}:bytes", *grid], [result], f"{result}:DQ"),
    ]


def channel_activations() -> Case:
    """Activations with a scale per channel, before a depthwise convolution."""
    made = static(plain_depthwise())
    twin = onnxfile.copied(made.model)
    reads = next(node for node in twin.graph.node if node.name == "depthwise").input[0]
    source = next(node for node in twin.graph.node if reads in node.output)
    scale, zero = source.input[1], source.input[2]
    channels = 16
    for item in [*twin.graph.initializer]:
        if item.name in (scale, zero):
            value = np.repeat(numpy_helper.to_array(item).reshape(1), channels)
            if item.name == scale:
                value = (value * np.linspace(0.5, 1, channels)).astype(np.float32)
            twin.graph.initializer.append(numpy_helper.from_array(value, f"{item.name}:channels"))
    for node in twin.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == scale:
            node.input[1], node.input[2] = f"{scale}:channels", f"{zero}:channels"
            node.attribute.append(helper.make_attribute("axis", 1))
    return Case(twin, made.reference, made.feed)


def saturating() -> Case:
    """Large activations and full-range weights of one sign: pairs of products leave 16 bits where there is no VNNI."""
    case = products()
    twin = onnxfile.copied(case.model)
    for item in twin.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(item)), item.name))
    return replace(static(Case(twin, None, {"x": np.abs(case.feed["x"])})), target="avx2")


def stale_shapes() -> Case:
    """The weights were transposed, their stored shape was not."""
    case = products()
    case.model.graph.value_info.append(helper.make_tensor_value_info("v", FLOAT, [32, 64]))
    case.model.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, ["batch", 48]))
    return case


CORPUS: dict[str, tuple[str, Callable[[], Case]]] = {
    "nothing or little quantized": ("coverage", little_quantized),
    "not smaller": ("size", not_smaller),
    "unused float weights left in": ("leftovers", unused_weights),
    "slower than what it replaced": ("speed", signed_activations),
    "per-tensor depthwise collapse": ("depthwise", collapsed_depthwise),
    "alone and padded differ": ("padding", padded_batch),
    "answers depend on the batch": ("batch", batch_dependence),
    "a correction that made it worse": ("correction", worse_correction),
    "levels differ": ("levels", levels_differ),
    "per-channel activations": ("activations", channel_activations),
    "stale shapes": ("shapes", stale_shapes),
    "saturation on the target": ("saturation", saturating),
}
"""Failure → the check that must catch it, and how it is made."""
