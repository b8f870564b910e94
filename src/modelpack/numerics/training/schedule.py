"""How a student is trained: epochs, optimizer, learning rates over time, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Parallel = Literal["ddp", "fsdp"]
Curve = Literal["cosine", "one_cycle", "linear", "constant"]

_START, _END = 1 / 25, 1e-4 / 25
"""Of `one_cycle`: the rates that it begins and ends with, as fractions of the highest."""


@dataclass(frozen=True)
class Schedule:
    """How a student is trained.

    Attributes:
        epochs: Passes over the data, at most.
        rate: Highest learning rate.
        curve: How the rate falls after the warm-up.
        warmup: Fraction of all steps during which the rate rises.
        optimizer: AdamW (Loshchilov and Hutter, 2019), or gradient descent with Nesterov's momentum.
        momentum: Of the latter.
        decay: Weight decay of matrices; vectors (biases, scales) have none.
        clip: Largest norm of the gradient; 0 for no limit.
        accumulate: Batches whose gradients make one step of the optimizer.
        layer_decay: The rate of each layer as a fraction of that of the layer after it.
        average: Decay of the moving average of the weights that is judged and kept; 0 for the weights themselves.
        patience: Epochs without a better score after which training ends; None to go on.
        every: Epochs between two evaluations.
        precision: Of the forward pass; ``auto`` is bfloat16 on CUDA (float16 where it lacks that), float32 elsewhere.
        recompute: Compute the activations inside repeated blocks again when gradients need them.
        compile: Let torch.compile make kernels for the student.
        parallel: What several processes share: the work alone (``ddp``), or parameters as well (``fsdp``).
    """

    epochs: int
    rate: float
    curve: Curve = "cosine"
    warmup: float = 0.1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    decay: float = 1e-4
    clip: float = 1.0
    accumulate: int = 1
    layer_decay: float = 1.0
    average: float = 0.0
    patience: int | None = None
    every: int = 1
    precision: Precision = "auto"
    recompute: bool = False
    compile: bool = False
    parallel: Parallel = "ddp"

    def fraction(self, done: float) -> float:
        """Give the learning rate as a fraction of the highest when a fraction of all steps is done.

        `one_cycle` rises and falls along cosines (Smith and Topin, 2018); the others rise in a line.
        """
        if done < self.warmup:
            if self.curve == "one_cycle":
                return _along(_START, 1.0, done / self.warmup)
            return (done + 0.01) / (self.warmup + 0.01)
        after = (done - self.warmup) / (1 - self.warmup)
        if self.curve == "constant":
            return 1.0
        if self.curve == "linear":
            return 1.0 - after
        return _along(1.0, _END if self.curve == "one_cycle" else 0.0, after)


def _along(start: float, end: float, done: float) -> float:
    """Go from one value to another along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
