"""One way to call a model of either kind on numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modelpack.artifact import Artifact, Kind
from modelpack.errors import StageError
from modelpack.numerics.rows import feed
from modelpack.numerics.runtime import execute, ort, session
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed


class Predictor(Protocol):
    """A model that turns named arrays into named arrays."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The model's inputs, in its order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs, in its order."""

    def __call__(self, batch: Mapping[str, NDArray[np.generic]]) -> Feed:
        """Predict; `batch` holds every input, other keys are ignored.

        Raises:
            StageError: When an input is missing or unfit, or the model fails on it.
        """


@dataclass(frozen=True)
class OnnxPredictor:
    """An ONNX model in onnxruntime."""

    session: ort.InferenceSession
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]

    def __call__(self, batch: Mapping[str, NDArray[np.generic]]) -> Feed:
        """Predict with onnxruntime."""
        return execute(self.session, feed(batch, self.inputs), self.outputs)


@dataclass(frozen=True)
class TorchPredictor:
    """A torch module in evaluation mode."""

    module: Any
    device: str
    threads: int | None
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]

    def __call__(self, batch: Mapping[str, NDArray[np.generic]]) -> Feed:
        """Predict with torch, without gradients."""
        import torch

        from modelpack.numerics.calling import call, torch_threads

        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
            for name, value in feed(batch, self.inputs).items()
        }
        with torch_threads(self.threads), torch.inference_mode():
            outputs = call(self.module, tensors)
            return {name: outputs[name].detach().cpu().numpy() for name in self.outputs}


def signature(artifact: Artifact) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """Read a model artifact's inputs and the names of its outputs, both in the model's order."""
    body = artifact.read_json("signature.json")
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in body["inputs"].items()}
    return inputs, tuple(body["outputs"])


def predictor(artifact: Artifact, device: str = "cpu", *, threads: int | None = None) -> Predictor:
    """Open a model artifact of either kind for prediction.

    Raises:
        MissingError: When the device was not obtained.
        StageError: When the model cannot be loaded, or the artifact holds no model.
    """
    if not artifact.kind.is_model:
        raise StageError(f"an artifact of kind '{artifact.kind}' cannot predict", where=artifact.id[:12])
    inputs, outputs = signature(artifact)
    if artifact.kind is Kind.ONNX:
        opened = session(artifact.file("model.onnx"), device, threads=threads)
        return OnnxPredictor(opened, inputs, outputs)
    from modelpack.numerics import models

    return TorchPredictor(models.load(artifact, device), device, threads, inputs, outputs)
