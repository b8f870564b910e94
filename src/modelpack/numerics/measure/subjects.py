"""What is measured: a model artifact or a plain ONNX file, and the arrays it is fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modelpack.artifact import Artifact, Kind
from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import prediction, rows
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Subject:
    """One model to measure.

    Attributes:
        name: How tables call it.
        kind: Which runtime runs it.
        path: The artifact's directory for torch, the file for ONNX.
        inputs: Its inputs, in its order.
        size: Bytes of the model on disk.
        id: The artifact's id; empty for a plain file.
    """

    name: str
    kind: Literal["torch", "onnx"]
    path: Path
    inputs: Mapping[str, TensorSpec]
    size: int
    id: str = ""

    @classmethod
    def of(cls, artifact: Artifact, name: str) -> Subject:
        """Take a model artifact.

        Raises:
            StageError: When it holds no model.
        """
        if not artifact.kind.is_model:
            raise StageError(f"'{name}' is of kind '{artifact.kind}', which has no speed", then="name a model")
        inputs, _ = prediction.signature(artifact)
        if artifact.kind is Kind.TORCH:
            return cls(name, "torch", artifact.path, inputs, artifact.model_bytes, artifact.id)
        return cls(name, "onnx", artifact.file("model.onnx"), inputs, artifact.model_bytes, artifact.id)

    @classmethod
    def of_file(cls, path: Path, name: str) -> Subject:
        """Take an ONNX file from elsewhere.

        Raises:
            StageError: When it is no ONNX file, or its inputs cannot be fed.
        """
        from modelpack.numerics import graph, onnxfile

        model = onnxfile.read(path)
        inputs = {key: TensorSpec.model_validate(value) for key, value in graph.signature(model)["inputs"].items()}
        # Read whole, the message holds external tensors as well: its bytes are the model's size wherever they lie.
        return cls(name, "onnx", path, inputs, max(path.stat().st_size, onnxfile.size(model)))

    def check_rows(self, batches: Sequence[int]) -> None:
        """Refuse batches that the model cannot take.

        Raises:
            StageError: When its number of rows is fixed to another one.
        """
        fixed = next((spec.shape[0] for spec in self.inputs.values() if spec.shape), None)
        wrong = [batch for batch in batches if isinstance(fixed, int) and batch != fixed]
        if wrong:
            raise StageError(
                f"'{self.name}' takes exactly {fixed} rows, not {wrong[0]}",
                then=f"measure it with batch {fixed}, or name the dimension in `inputs:` to make it dynamic",
            )

    def named_dimensions(self) -> set[str]:
        """Name the dynamic dimensions that do not count rows."""
        found = {name for spec in self.inputs.values() for name in spec.dynamic.values()}
        return found - {rows.batch_name(self.inputs)}


def check_dimensions(subjects: Sequence[Subject], sizes: Mapping[str, int]) -> list[str]:
    """Compare the sizes given with the dimensions that exist.

    Returns:
        The dimensions without a size.

    Raises:
        StageError: For a size whose dimension no subject has.
    """
    known = set().union(*(subject.named_dimensions() for subject in subjects))
    for name in sizes:
        if name not in known:
            hint = did_you_mean(name, known) if known else "the models have no dynamic dimensions besides their rows"
            raise StageError(f"no model has a dynamic dimension '{name}'", then=hint)
    return sorted(known - set(sizes))


def sampled(subject: Subject, batch: int, seed: int, sizes: Mapping[str, int]) -> Feed:
    """Make inputs within the declared ranges."""
    return rows.sample(subject.inputs, batch, seed, sizes)


def drawn(subject: Subject, data: Mapping[str, NDArray[Any]], batch: int) -> Feed:
    """Take rows of one batch of data, over again where it has fewer.

    Raises:
        StageError: When the data do not fit the model.
    """
    count = len(next(iter(data.values())))
    picked = np.arange(batch) % count
    return rows.feed({name: np.asarray(values)[picked] for name, values in data.items()}, subject.inputs)
