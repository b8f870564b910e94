"""What the training loop costs beside the computing itself: it against the same training written out in torch.

Usage: ``python benchmarks/training.py [--pairs 7] [--seconds 4] [--device cuda:0]``.

Both loops train the same network on the same batches with the same optimizer, learning rates and limit of the gradient.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # the networks are so small that threads would only wait for each other

import numpy as np
import torch
from fashion.net import Block
from table import ratio, write
from torch import Tensor, nn
from torch.nn import functional

from modelpack.numerics.calling import call
from modelpack.numerics.randomness import repeatable
from modelpack.numerics.training import Lesson, Rows, Schedule, train
from modelpack.numerics.training.batches import TRUTH, split
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelpack.numerics.training.batches import Arrays

CLASSES, CLIP, RATE = 10, 1.0, 1e-3


@dataclass(frozen=True)
class Labels:
    """Learning from labels alone."""

    learned: nn.Module | None = None

    def losses(self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the cross entropy."""
        return {"loss": functional.cross_entropy(call(student, inputs)["output"], beside[TRUTH])}

    def judge(self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]) -> dict[str, Any]:
        """Judge nothing: what judging costs is another question."""
        raise NotImplementedError

    def figure(self, score: float) -> tuple[str, float]:
        """Name nothing."""
        raise NotImplementedError


class Encoder(nn.Module):
    """A small transformer over tokens."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to scores (batch, classes)."""
        return self.head(self.body(self.words(tokens)).mean(1))


class Residual(nn.Module):
    """A small residual network for images of 28x28."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (batch, 1, 28, 28) to scores (batch, classes)."""
        return self.head(self.body(self.stem(image)).mean((2, 3)))


def images(rows: int) -> Arrays:
    """Draw images."""
    return {"image": np.random.default_rng(0).standard_normal((rows, 1, 28, 28)).astype(np.float32)}


def sentences(rows: int) -> Arrays:
    """Draw sentences."""
    return {"tokens": np.random.default_rng(0).integers(0, 1000, (rows, 32))}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Arrays], int]] = {
    "residual network": (Residual, images, 128),
    "transformer": (Encoder, sentences, 64),
}


NOTES = {
    "cpu": ("Processor time", "Channels first is how torch lays images out unless told."),
    "cuda": (
        "Time",
        (
            "They lie on the GPU. The loop lets the GPU add up in the same order every time, as torch does only when "
            "told; networks of this size keep the processor that gives the orders busy, not the GPU."
        ),
    ),
}
"""What is counted on each kind of device, and what else is to be known."""


def rows_of(columns: Arrays, size: int) -> Rows:
    """Give rows as training reads them."""
    count = len(next(iter(columns.values())))

    def read() -> list[Arrays]:
        return [{name: array[at : at + size] for name, array in columns.items()} for at in range(0, count, size)]

    inputs = {
        name: TensorSpec(shape=("batch", *array.shape[1:]), dtype=str(array.dtype))
        for name, array in columns.items()
        if name != "label"
    }
    return Rows(read, inputs, "label")


def clock(device: torch.device) -> float:
    """Tell the time: the processor's, which others on the machine take none of; on a GPU that of the wall."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(student: nn.Module, data: Rows, epochs: int) -> float:
    """Train with the loop; gives the seconds that `clock` counts."""
    device = next(student.parameters()).device
    schedule = Schedule(epochs, RATE, clip=CLIP, precision="float32")
    lesson = Lesson(Labels(), data, None, schedule, device, 0)
    with tempfile.TemporaryDirectory() as scratch:
        began = clock(device)
        train(student, lesson, Path(scratch))
        return clock(device) - began


def bare(student: nn.Module, data: Rows, epochs: int, *, alike: bool) -> float:
    """Train in plain torch, the batches on the device and in order; gives the seconds that `clock` counts.

    Args:
        student: On its device.
        data: What it learns from.
        epochs: How often.
        alike: Whether to compute as the loop does: channels last on a processor, on a GPU the same bits every time.
    """
    device = next(student.parameters()).device
    ready = [split(batch, device, shared=False) for batch in data.shuffled(0)]
    with repeatable(device) if alike and device.type == "cuda" else contextlib.nullcontext():
        began = clock(device)
        if alike and device.type == "cpu":
            student.to(memory_format=torch.channels_last)
        _steps(student.train(), ready, Schedule(epochs, RATE, clip=CLIP))
        return clock(device) - began


def _steps(student: nn.Module, ready: list[tuple[dict[str, Tensor], dict[str, Tensor]]], schedule: Schedule) -> None:
    epochs = schedule.epochs
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=schedule.decay, fused=True)
    total, done = torch.zeros(()), 0
    for _ in range(epochs):
        for inputs, beside in ready:
            optimizer.param_groups[0]["lr"] = RATE * schedule.fraction(done / (epochs * len(ready)))
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(student(*inputs.values()), beside[TRUTH])
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), CLIP)
            optimizer.step()
            total, done = total.to(loss.device) + loss.detach(), done + 1
        float(total)


def measure(case: str, pairs: int, seconds: float, device: str) -> dict[str, str]:
    """Time both loops in turn; gives a line of the table."""
    draw, size = CASES[case][1:]

    def build() -> nn.Module:
        return CASES[case][0]().to(device)

    columns = draw(10 * size)
    columns["label"] = np.random.default_rng(1).integers(0, CLASSES, 10 * size)
    data = rows_of(columns, size)
    bare(build(), data, 1, alike=True)  # whatever is made at the first call
    once = bare(build(), data, 1, alike=True)
    epochs = max(1, round(seconds / once))
    mine, same, plain = [], [], []
    for _ in range(pairs):
        same.append(bare(build(), data, epochs, alike=True))
        mine.append(ours(build(), data, epochs))
        plain.append(bare(build(), data, epochs, alike=False))
    steps = 10 * epochs
    return {
        "network": case,
        "batch": str(size),
        "step": f"{1000 * min(mine) / steps:.1f} ms",
        "to the same in plain torch": ratio(mine, same),
        "to plain torch, channels first" if device == "cpu" else "to plain torch, any order of sums": ratio(
            mine, plain
        ),
    }


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long one training takes, about")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(case, options.pairs, options.seconds, options.device) for case in CASES]
    cpu = options.device == "cpu"
    counted, last = NOTES["cpu" if cpu else "cuda"]
    note = (
        f"{counted} of {options.pairs} trainings with modelpack's loop, each as a ratio to one written out in "
        "torch right before or after it: the same network, batches, AdamW, learning rates and limit of the gradient. "
        "The loop also shuffles and gathers the rows, sees that every loss is a number, keeps weights and writes "
        f"checkpoints; the plain one has its batches ready. {last}"
    )
    command = "python benchmarks/training.py" + ("" if cpu else f" --device {options.device}")
    write("training", "What the training loop costs", rows, [note], command, device=options.device)


if __name__ == "__main__":
    main()
