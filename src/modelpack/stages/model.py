"""The first step of every recipe: a user's model becomes an artifact."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelpack import canonical, onnx_header
from modelpack.artifact import Kind
from modelpack.bind import Arguments, InputPath, UserCode
from modelpack.stage import Job, StageConfig, stage
from modelpack.stages import remarks
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)
"""What precedes the name of a file of external tensors in an ONNX file: the entry's key, then the name's length."""


class BuiltConfig(StageConfig):
    """A PyTorch model: the code that builds it, and its weights."""

    factory: UserCode = Field(
        description="What builds the model: file.py:callable beside the recipe, or package.module:callable."
    )
    arguments: Arguments = Field(default_factory=dict, description="Keyword arguments of the factory.")
    weights: InputPath | None = Field(
        None, description="A .safetensors, .pt or .pth state dict; the factory's own weights when absent."
    )


class ModelConfig(BuiltConfig):
    """A PyTorch model: the code that builds it, its weights, and what it takes."""

    inputs: dict[str, TensorSpec] = Field(
        min_length=1, description="The model's inputs by name, in the order of its forward()."
    )
    outputs: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names for what forward() returns, or the keys to keep of a returned dict."
    )

    def canonical(self) -> object:
        """Stand for the settings in every hash; the inputs' order counts, since they may be passed by position."""
        return {**{name: getattr(self, name) for name in type(self).model_fields}, "order": list(self.inputs)}


class OnnxModelConfig(StageConfig):
    """An ONNX file, and what it takes where the file does not say."""

    onnx: InputPath = Field(description="The ONNX file.")
    inputs: dict[str, TensorSpec] | None = Field(
        None, description="The inputs by name, checked against the file; read from it when absent."
    )
    outputs: tuple[str, ...] | None = Field(None, min_length=1, description="Outputs that the file must have.")

    def canonical(self) -> object:
        """Stand for the settings in every hash, the file's external tensors included."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {**fields, "external": _external_digests(self.onnx)}


def _external_digests(model: InputPath) -> dict[str, str]:
    if not model.path.is_file():
        return {}
    data = model.path.read_bytes()
    found = {data[match.end() : match.end() + match[1][0]] for match in _EXTERNAL.finditer(data)}
    # Bytes that merely look like a name cost nothing: they name no file.
    names = {name.decode() for name in found if name.isascii() and name.decode().isprintable()}
    files = {name: model.path.parent / name for name in names}
    return {name: canonical.file_digest(path) for name, path in sorted(files.items()) if path.is_file()}


@stage(
    version=1,
    accepts=(),
    produces=Kind.TORCH,
    needs=("torch", "safetensors"),
    inputs=lambda config: config.inputs,
)
def model(config: ModelConfig, job: Job) -> None:
    """Build a PyTorch model from code and weights, and try it once on inputs of the declared shapes."""
    from modelpack.numerics import models

    module = built(config, job, config.inputs, config.outputs)
    if config.weights is None:
        job.note("no weights are given: the model keeps those that its factory makes")
    feed = models.example(module, config.inputs, 2, job.seed)
    for name in models.not_finite(module, feed):
        job.warn(f"output '{name}' holds NaN or infinity on made-up inputs: are the weights and the ranges right?")
    remarks.size(module, feed, job)


def built(config: BuiltConfig, job: Job, inputs: Mapping[str, TensorSpec], outputs: tuple[str, ...] | None) -> Any:
    """Build a model, and write it where the step's result belongs.

    Args:
        config: Says which.
        job: Its seed is that of weights that the factory draws.
        inputs: What the model takes.
        outputs: Names for what it gives.

    Raises:
        StageError: When it cannot be built, its weights do not fit, or it fails on such inputs.
    """
    from modelpack.numerics import models

    module, notes = models.write(
        job.out,
        reference=config.factory.reference,
        base=config.factory.base,
        arguments=config.arguments,
        weights=config.weights.path if config.weights else None,
        inputs=inputs,
        outputs=outputs,
        seed=job.seed,
    )
    for note in notes:
        job.note(note)
    return module


def _inputs(config: OnnxModelConfig) -> dict[str, TensorSpec]:
    """Give the inputs that are declared, in the file's order, or those of the file."""
    known = onnx_header.inputs(config.onnx.path)
    if config.inputs is None:
        return known
    ranks = {name: rank for rank, name in enumerate(known)}
    return dict(sorted(config.inputs.items(), key=lambda item: ranks.get(item[0], len(ranks))))


@stage(version=1, accepts=(), produces=Kind.ONNX, needs=("onnx", "onnxruntime"), inputs=_inputs)
def onnx_model(config: OnnxModelConfig, job: Job) -> None:
    """Take an ONNX file, check it, and try it once on inputs of the declared shapes."""
    from modelpack.numerics import onnx_import

    facts = onnx_import.write(job.out, config.onnx.path, config.inputs, config.outputs, job.seed)
    for name, value in facts.items():
        job.metric(name, value)
