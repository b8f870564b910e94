"""Pruning and recovery side by side: modelpack's recipe, and torch-pruning with plain fine-tuning.

Usage: ``python benchmarks/pruning.py [--model fashion] [--seeds 3] [--rounds 60]``

It needs ``pip install --editable '.[dev]'`` and what ``recipes/fashion-prune-distill.yaml``,
``benchmarks/mnist/prepare.py`` and ``benchmarks/movies/prepare.py`` say that they need. A model keeps its table until
it is measured again.

Both sides see the same training rows for the same number of epochs; both are exported and judged by the same code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import clock
import numpy as np
import pruners
import torch
from cases import CASES
from rows import columns
from table import ratio, write

from modelpack import engine, recipe
from modelpack.numerics import export, macs, models, onnxfile, rows, tracing
from modelpack.steps import MODEL
from modelpack.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cases import Case, Material
    from torch import nn

    from modelpack.artifact import Artifact
    from modelpack.recipe import Recipe

HERE = Path(__file__).parent
ORIGINAL, OURS = "the original", "modelpack"


@dataclasses.dataclass
class Made:
    """A model that one way of pruning gave with one seed.

    Attributes:
        file: Its export.
        macs: Fraction of the multiply-accumulates that stayed.
        cpu: CPU seconds that pruning and training took.
        wall: The same on the clock.
        accuracy: On the test rows.
    """

    file: Path
    macs: float
    cpu: float
    wall: float
    accuracy: float = 0.0


class Workshop:
    """One case with one seed: its recipe, and where results go."""

    def __init__(self, case: Case, seed: int, folder: Path) -> None:
        self.case, self.seed, self.folder = case, seed, folder
        body = {"name": "pruning", "seed": seed, **case.body, "stages": list(case.ours)}
        self.recipe: Recipe = recipe.parse(json.dumps(body), HERE / "pruning.yaml")  # JSON is YAML
        self.store = Store(folder / "store")
        self.store.prepare()

    def ours(self) -> tuple[Artifact, Artifact, Made]:
        """Run our steps; give the original, the result, and what it took."""
        model = next(step for step in self.recipe.steps if step.id == MODEL)
        alone = dataclasses.replace(self.recipe, steps=(model,), deciding={})
        engine.run(engine.open_desk(alone, self.store, "cpu"), lambda _event: None)
        with clock.Clock() as taken:
            run = engine.run(engine.open_desk(self.recipe, self.store, "cpu"), lambda _event: None)
        original = self.store.get(run.step(MODEL).artifact)
        result = self.store.get(run.steps[-1].artifact)
        return original, result, self._written(OURS, models.load(result), original, taken)

    def theirs(self, name: str, original: Artifact, material: Material) -> Made:
        """Prune by torch-pruning, and fine-tune."""
        case, plain = self.case, self.case.plain
        net = models.load(original)
        torch.manual_seed(self.seed)
        with clock.Clock() as taken:
            smaller = case.peers[name](net, material)
            epochs = (material.batches(self.seed, epoch) for epoch in range(plain.epochs))
            pruners.tune(smaller, epochs, plain, material.steps * plain.epochs)
        return self._written(name, smaller, original, taken)

    def original(self, artifact: Artifact) -> Made:
        """Export the model as it was."""
        return self._written(ORIGINAL, models.load(artifact), artifact, clock.Clock())

    def _written(self, name: str, net: nn.Module, original: Artifact, taken: clock.Clock) -> Made:
        """Export a network, and count its work."""
        signature = original.read_json("signature.json")
        net = net.eval()
        inputs, outputs = self.recipe.inputs, signature["outputs"]
        example = tracing.traceable(rows.sample(inputs, 2, 0), inputs, 0)
        path = self.folder / f"{name.replace(' ', '-')}.onnx"
        path.write_bytes(onnxfile.encode(export.export(net, example, inputs, outputs, 20).model))
        feed = models.tensors(rows.sample(inputs, 1, 0), "cpu")
        kept = macs.count(net, feed) / macs.count(models.load(original), feed)
        return Made(path, kept, taken.cpu, taken.wall)


def measure(name: str, seeds: int, rounds: int) -> None:
    """Prune, judge and time one case, and write its table."""
    case = CASES[name]
    found: dict[str, list[Made]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            shop = Workshop(case, seed, Path(scratch) / str(seed))
            original, _, ours = shop.ours()
            material = case.gather(shop.recipe)
            made = {ORIGINAL: shop.original(original), OURS: ours}
            made |= {peer: shop.theirs(peer, original, material) for peer in case.peers}
            test = columns(shop.recipe, "test")
            for way, item in made.items():
                item.accuracy = accuracy(item.file, test)
                found.setdefault(way, []).append(item)
                print(f"seed {seed}, {way}: {item.accuracy:.4f}, {item.macs:.1%}, {item.wall:.0f} s", flush=True)
        feed = {key: value[:1] for key, value in test.items() if key in shop.recipe.inputs}
        taken = clock.turns({way: items[0].file for way, items in found.items()}, feed, rounds)
        table = [line(way, items, found[ORIGINAL][0], taken) for way, items in found.items()]
    note = (
        f"Every way ran with {seeds} seeds: the mean, and each seed's figure. Both sides see the same rows for "
        f"{case.plain.epochs} epochs: modelpack learns from the original and the truth, torch-pruning's networks are "
        "fine-tuned on the truth with AdamW and one cycle of the same highest rate. Speed: in onnxruntime, one row on "
        f"one thread, relative to the original; median and quartiles of {rounds} rounds in which the models take turns."
    )
    write(f"pruning-{name}", case.title, table, [case.note, note], f"python benchmarks/pruning.py --model {name}")


def line(way: str, items: Sequence[Made], original: Made, taken: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Write a way's line of the table."""
    if way == ORIGINAL:
        return {"way": way, "multiply-accumulates": "100 %", "accuracy": f"{original.accuracy:.4f}", "lost": "",
                "speed": "1.00x", "of what multiply-accumulates promise": "", "took": ""}  # fmt: skip
    accuracies = [item.accuracy for item in items]
    speed = statistics.median(a / b for a, b in zip(taken[ORIGINAL], taken[way], strict=True))
    return {
        "way": way,
        "multiply-accumulates": f"{items[0].macs:.1%}",
        "accuracy": f"{statistics.mean(accuracies):.4f} ({', '.join(f'{value:.4f}' for value in accuracies)})",
        "lost": f"{100 * (original.accuracy - statistics.mean(accuracies)):.2f} points",
        "speed": ratio(taken[ORIGINAL], taken[way]),
        "of what multiply-accumulates promise": f"{speed * items[0].macs:.0%}",
        "took": f"{statistics.median(item.cpu for item in items):.0f} CPU s, "
        f"{statistics.median(item.wall for item in items) / 60:.1f} min",
    }


def accuracy(path: Path, test: Mapping[str, np.ndarray], size: int = 50) -> float:
    """Give the share of rows whose class a file names correctly."""
    opened = clock.session(path, 0)
    names = [item.name for item in opened.get_inputs()]
    total = len(test["label"])
    parts = [{name: test[name][begin : begin + size] for name in names} for begin in range(0, total, size)]
    guesses = np.concatenate([opened.run(None, part)[0].argmax(1) for part in parts])
    return float((guesses == test["label"]).mean())


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="all when absent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    for name in options.model or CASES:
        measure(name, options.seeds, options.rounds)


if __name__ == "__main__":
    main()
