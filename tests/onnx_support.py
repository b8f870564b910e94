"""What the tests of ONNX stages share: torch artifacts of the small nets, and graphs written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from modelpack.artifact import Artifact, Kind
from modelpack.numerics import graph, onnxfile, signatures
from modelpack.numerics.quantization.calibrate import Asked, calibrate
from modelpack.numerics.quantization.calibration.record import Calibration
from modelpack.stage import Job, StageConfig, stage
from modelpack.stages.model import model as model_stage
from modelpack.tensors import TensorSpec
from support import run_stage

HERE = Path(__file__).parent

torch.set_num_threads(1)


def torch_artifact(root: Path, factory: str, inputs: dict[str, Any], base: Path = HERE, **settings: Any) -> Artifact:
    """Import one of the nets as the first step of a recipe would."""
    specs = {name: TensorSpec.model_validate(spec) for name, spec in inputs.items()}
    wanted = {"factory": factory, "inputs": inputs, **settings}
    return run_stage(root, model_stage, wanted, inputs=specs, base=base)


class _Nothing(StageConfig):
    """No settings."""


def onnx_artifact(root: Path, proto: onnx.ModelProto) -> Artifact:
    """Seal a graph as an ONNX artifact."""
    described = graph.signature(proto)
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in described["inputs"].items()}

    @stage(version=1, accepts=(), produces=Kind.ONNX)
    def planted(config: _Nothing, job: Job) -> None:
        """Write the graph."""
        onnxfile.write(proto, job.out)
        (job.out / "signature.json").write_bytes(signatures.encode(inputs, described["outputs"]))

    return run_stage(root, planted, {}, inputs=inputs)


def calibrated(proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], **asked: Any) -> Calibration:
    """Calibrate a graph on some rows."""
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(proto)["inputs"].items()}
    return calibrate(proto, "hand", Asked(**asked), lambda _label: feeds, inputs)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[list[Any], int]],
    outputs: dict[str, list[Any]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    """Write a graph by hand: float outputs, weights as initializers."""
    made = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
