"""How a student is trained: epochs, learning rates, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Schedule:
    """How a student is trained.

    Attributes:
        epochs: Passes over the data.
        rate: Highest learning rate of AdamW.
        warmup: Fraction of all steps during which the rate rises from nothing; it then falls along a cosine.
        decay: Weight decay of matrices; vectors (biases, scales) have none.
        clip: Largest norm of the gradient; 0 for no limit.
        precision: Of the forward pass; ``auto`` is bfloat16 on CUDA (float16 where it lacks that), float32 elsewhere.
    """

    epochs: int
    rate: float
    warmup: float = 0.1
    decay: float = 1e-4
    clip: float = 1.0
    precision: Precision = "auto"
