"""Weights that are zero on purpose: which they are is written beside a model, and carried over.

::

    sparsity.json    {"method", "pattern", "layers": {weight: how many of its numbers are zero}}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from safetensors import safe_open

from modelpack import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from modelpack.artifact import Artifact

NAME = "sparsity.json"
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Sparsity:
    """What was made zero.

    Attributes:
        method: How the zeros were chosen.
        pattern: ``2:4`` where 2 of each 4 inputs stayed; empty where zeros may be anywhere.
        layers: Weight, by its name in the weights file → how many of its numbers are zero.
    """

    method: str
    pattern: str
    layers: Mapping[str, int]

    @property
    def zeros(self) -> int:
        """How many numbers are zero."""
        return sum(self.layers.values())


def write(sparsity: Sparsity, out: Path) -> None:
    """Write what was made zero beside a model."""
    (out / NAME).write_bytes(canonical.encode(asdict(sparsity)))


def read(artifact: Artifact) -> Sparsity | None:
    """Read what was made zero of a model; None for a dense one."""
    if all(item.name != NAME for item in artifact.manifest.files):
        return None
    return Sparsity(**artifact.read_json(NAME))


def carry(like: Artifact, out: Path) -> None:
    """Describe a model that came from a sparse one as sparse too, if all those zeros are still there.

    Args:
        like: The model it came from.
        out: The new model's directory, its weights written.
    """
    sparsity = read(like)
    if sparsity is not None and not lost(sparsity, like, out):
        write(sparsity, out)


def lost(sparsity: Sparsity, like: Artifact, out: Path) -> list[str]:
    """Name the weights of a sparse model whose zeros are not all zeros in the one that came from it."""
    with safe_open(like.file(_WEIGHTS), "pt") as before, safe_open(out / _WEIGHTS, "pt") as after:
        there = set(after.keys())
        return [
            name
            for name in sparsity.layers
            if name not in there or not _held(before.get_tensor(name), after.get_tensor(name))
        ]


def _held(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and not bool(after[before == 0].count_nonzero())
