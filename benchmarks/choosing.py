"""What it costs to choose channels and cut them out: pruning by Taylor beside the gradients that it needs.

Usage: ``python benchmarks/choosing.py [--images 128] [--pairs 5]``.

It needs what ``recipes/lite0-int8.yaml`` says that it needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # what other work leaves of a machine's cores would be in the figures

import clock
import torch
from rows import columns
from table import ratio, write

from modelpack import engine, recipe
from modelpack.numerics import models, pruning
from modelpack.numerics.pruning import Rounding, Worth, evidence, rounding, targets
from modelpack.numerics.training import Rows
from modelpack.steps import MODEL
from modelpack.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelpack.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "lite0-int8.yaml"
KEEP = 0.8
BATCHES = (8, 32)
"""Rows of a plain forward and backward pass: what pruning itself takes, and what training would."""


def network(whole: Recipe) -> nn.Module:
    """Make the recipe's unpruned model."""
    model = next(step for step in whole.steps if step.id == MODEL)
    alone = dataclasses.replace(whole, steps=(model,), deciding={})
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        run = engine.run(engine.open_desk(alone, store, "cpu"), lambda _event: None)
        return models.load(store.get(run.step(MODEL).artifact)).eval()


def gradients(net: nn.Module, images: Tensor, size: int) -> float:
    """Pass images forward and backward in plain torch; gives the seconds of processor time."""
    with clock.Clock() as taken:
        for part in images.split(size):
            net.zero_grad(set_to_none=True)
            net(part).square().sum().backward()
    net.zero_grad(set_to_none=True)
    return taken.cpu


def chosen(net: nn.Module, images: Tensor, whole: Recipe) -> tuple[float, float]:
    """Choose channels and cut them out, as the stage does before it refits; gives CPU seconds, and what stays."""
    arrays = [{"image": part.numpy()} for part in images.split(BATCHES[-1])]
    feed = models.example(net, whole.inputs, 2, 0, "cpu")
    with clock.Clock() as taken:
        judged, _ = evidence.gather(Rows(lambda: arrays, whole.inputs, None), len(images), "cpu", 0)
        worth = Worth("taylor", evidence=judged)
        pruned = pruning.prune(net, feed, targets.of_macs(KEEP), worth, rounding=Rounding(rounding.BLOCK, adapts=True))
    return taken.cpu, pruned.fraction


def measure(count: int, pairs: int) -> list[dict[str, Any]]:
    """Time both in turn; gives the lines of the table."""
    whole = recipe.load(RECIPE)
    net, images = network(whole), torch.from_numpy(columns(whole, "calibration", count)["image"])
    chosen(net, images[:1], whole)  # what is only paid once, such as imports
    mine: list[float] = []
    plain: dict[int, list[float]] = {size: [] for size in BATCHES}
    for _ in range(pairs):
        for size, taken in plain.items():
            taken.append(gradients(net, images, size))
        seconds, kept = chosen(net, images, whole)
        mine.append(seconds)
    return [
        {
            "forward and backward": f"batches of {size}",
            "took": f"{min(taken):.1f} s",
            "choosing and cutting": f"{min(mine):.1f} s",
            "ratio": ratio(mine, taken),
            "multiply-accumulates kept": f"{kept:.1%}",
        }
        for size, taken in plain.items()
    ]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    note = (
        f"EfficientNet-Lite0 and {options.images} photos of 224x224: processor time on one thread of `prune` with "
        f"Taylor importance to {KEEP:.0%} of the multiply-accumulates, from the trace to the counted result, beside "
        "that of passing the same photos forward and backward in plain torch. Median and quartiles of the ratios of "
        f"{options.pairs} pairs that took turns. Importance itself takes eight photos at a time."
    )
    rows = measure(options.images, options.pairs)
    write("choosing", "What choosing channels costs", rows, [note], "python benchmarks/choosing.py")


if __name__ == "__main__":
    main()
