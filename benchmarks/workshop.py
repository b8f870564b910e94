"""Models made smaller in several ways, side by side: what it took, how good they are, how fast they run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clock
import numpy as np
import pruners
import torch
from file_pruners import CALIBRATION
from judgement import ACCURACY, Judgement
from rows import columns
from table import ratio, write

from modelpack import engine, recipe
from modelpack.numerics import export, graph, macs, models, onnxfile, rows, tracing
from modelpack.steps import MODEL
from modelpack.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto
    from pruners import Batch, Plain
    from rows import Feed
    from torch import Tensor, nn

    from modelpack.artifact import Artifact
    from modelpack.recipe import Recipe

HERE = Path(__file__).parent
ORIGINAL = "the original"


@dataclasses.dataclass(frozen=True)
class Material:
    """A case's rows, as the others' side reads them.

    Attributes:
        example: Inputs of one call, by name.
        sample: Batches for importance.
        batches: Seed and epoch → the batches of an epoch.
        steps: Batches of an epoch.
    """

    example: Mapping[str, Tensor]
    sample: Sequence[Batch]
    batches: Callable[[int, int], Any]
    steps: int


Stages = tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        title: Its heading.
        body: The recipe's model and data; `train`, `test` and, where importance reads rows, `sample`.
        ours: Way → steps that make the model smaller and teach it; the last one's model is judged.
        plain: How the others are fine-tuned.
        peers: Way → how torch-pruning prunes.
        gather: The recipe, and what its rows should give → the rows for the others' side.
        note: What the rows are.
        judgement: What counts as good.
        files: Way → how another tool prunes the exported file, looking at some rows.
    """

    title: str
    body: Mapping[str, Any]
    ours: Mapping[str, Stages]
    plain: Plain
    peers: Mapping[str, Callable[[nn.Module, Material], nn.Module]]
    gather: Callable[[Recipe, Feed], Material]
    note: str
    judgement: Judgement = ACCURACY
    files: Mapping[str, Callable[[Path, Sequence[Feed]], ModelProto]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Made:
    """A model that one way gave with one seed.

    Attributes:
        file: Its export.
        macs: Fraction of the multiply-accumulates that stayed.
        cpu: CPU seconds that pruning and training took.
        wall: The same on the clock.
        score: On the test rows.
    """

    file: Path
    macs: float
    cpu: float
    wall: float
    score: float = 0.0


class Workshop:
    """One case with one seed: its recipes, and where results go."""

    def __init__(self, case: Case, seed: int, folder: Path, device: str) -> None:
        self.case, self.seed, self.folder, self.device = case, seed, folder, device
        self.recipe = self._recipe(())
        self.original = self._run(self.recipe, "original")

    def _recipe(self, stages: Sequence[Mapping[str, Any]]) -> Recipe:
        body = {
            "name": "bench",
            "seed": self.seed,
            "allow": ["unrecovered"],
            **self.case.body,
            "stages": list(stages) or [{"export": {}}],
        }
        whole = recipe.parse(json.dumps(body), HERE / "bench.yaml")  # JSON is YAML
        steps = whole.steps if stages else tuple(step for step in whole.steps if step.id == MODEL)
        return dataclasses.replace(whole, steps=steps, deciding={})

    def _run(self, whole: Recipe, way: str) -> Artifact:
        """Run a recipe in a store of its own: what another way did before would take no time."""
        store = Store(self.folder / f"store-{way.replace(' ', '-')}")
        store.prepare()
        run = engine.run(engine.open_desk(whole, store, self.device), lambda _event: None)
        return store.get(run.steps[-1].artifact)

    def ours(self, way: str) -> Made:
        """Run our steps, and tell what they took."""
        whole = self._recipe(self.case.ours[way])
        self._run(self.recipe, way)
        with clock.Clock() as taken:
            result = self._run(whole, way)
        return self.written(way, models.load(result), taken)

    def theirs(self, way: str, material: Material) -> Made:
        """Prune by torch-pruning, and fine-tune."""
        case, plain = self.case, self.case.plain
        net = models.load(self.original, self.device)
        torch.manual_seed(self.seed)
        with clock.Clock() as taken:
            smaller = case.peers[way](net, material)
            epochs = (material.batches(self.seed, epoch) for epoch in range(plain.epochs))
            pruners.tune(smaller, epochs, plain, material.steps * plain.epochs, case.judgement.loss)
        return self.written(way, smaller, taken)

    def filed(self, way: str, original: Made, feeds: Sequence[Feed]) -> Made:
        """Let another tool prune the exported file."""
        with clock.Clock() as taken:
            model = self.case.files[way](original.file, feeds)
        path = self.folder / f"{way.replace(' ', '-')}.onnx"
        path.write_bytes(onnxfile.encode(model))
        kept = graph.facts(model).macs / graph.facts(onnxfile.read(original.file)).macs
        return Made(path, kept, taken.cpu, taken.wall)

    def written(self, way: str, net: nn.Module, taken: clock.Clock) -> Made:
        """Export a network, and count its work."""
        signature = self.original.read_json("signature.json")
        net = net.cpu().eval()
        inputs, outputs = self.recipe.inputs, signature["outputs"]
        example = tracing.traceable(rows.sample(inputs, 2, 0), inputs, 0)
        path = self.folder / f"{way.replace(' ', '-')}.onnx"
        path.write_bytes(onnxfile.encode(export.export(net, example, inputs, outputs, 20).model))
        feed = models.tensors(rows.sample(inputs, 1, 0), "cpu")
        kept = macs.count(net, feed) / macs.count(models.load(self.original), feed)
        return Made(path, kept, taken.cpu, taken.wall)

    def truth(self, name: str, original: Path) -> tuple[Feed, NDArray[Any]]:
        """Read one of the data entries, and what its rows should give."""
        found, asked = columns(self.recipe, name), self.case.judgement.truth
        if asked == "labels":
            return found, found["label"]
        given = outputs_of(original, found)
        return found, given.argmax(1) if asked == "classes" else given


def outputs_of(path: Path, feed: Feed, size: int = 50) -> NDArray[Any]:
    """Give a file's first output for all rows."""
    opened = clock.session(path, 0)
    names = [item.name for item in opened.get_inputs()]
    total = len(feed[names[0]])
    parts = [{name: feed[name][begin : begin + size] for name in names} for begin in range(0, total, size)]
    return np.concatenate([opened.run(None, part)[0] for part in parts])


def one_seed(case: Case, seed: int, folder: Path, device: str) -> tuple[dict[str, Made], Feed]:
    """Make and judge every model of a case with one seed; give them with the rows that timing runs on."""
    shop = Workshop(case, seed, folder, device)
    made = {ORIGINAL: shop.written(ORIGINAL, models.load(shop.original), clock.Clock())}
    test, truth = shop.truth("test", made[ORIGINAL].file)

    def judged(way: str, item: Made) -> None:
        item.score = float(case.judgement.score(outputs_of(item.file, test), truth).mean())
        made[way] = item
        print(f"seed {seed}, {way}: {item.score:.4f}, {item.macs:.1%}, {item.wall:.0f} s", flush=True)

    judged(ORIGINAL, made[ORIGINAL])
    for way in case.ours:
        judged(way, shop.ours(way))
    if case.files:
        seen = columns(shop.recipe, "train", CALIBRATION)
        feeds = [{name: seen[name][row : row + 8] for name in shop.recipe.inputs} for row in range(0, CALIBRATION, 8)]
        for way in case.files:
            judged(way, shop.filed(way, made[ORIGINAL], feeds))
    if case.peers:
        found, wanted = shop.truth("train", made[ORIGINAL].file)
        material = case.gather(shop.recipe, {**found, "truth": wanted})
        for way in case.peers:
            judged(way, shop.theirs(way, material))
    return made, {key: value[:1] for key, value in test.items() if key in shop.recipe.inputs}


def command(about: str, script: str, cases: Mapping[str, Case]) -> None:
    """Read the command line of a script, and measure the cases that it asks for."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--model", choices=cases, action="append", help="all when absent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.model or cases:
        measure(f"{script}-{name}", cases[name], options.seeds, options.rounds, options.device)


def measure(name: str, case: Case, seeds: int, rounds: int, device: str) -> None:
    """Make, judge and time the models of one case; after every seed its table is written."""
    found: dict[str, list[Made]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            made, feed = one_seed(case, seed, Path(scratch) / str(seed), device)
            for way, item in made.items():
                found.setdefault(way, []).append(item)
            taken = clock.turns({way: items[0].file for way, items in found.items()}, feed, rounds)
            tell(name, case, found, taken, device)


def tell(
    name: str, case: Case, found: Mapping[str, list[Made]], taken: Mapping[str, Sequence[float]], device: str
) -> None:
    """Write the table of the seeds so far to ``results/NAME``, or ``NAME-cuda``."""
    seeds, rounds = len(found[ORIGINAL]), len(taken[ORIGINAL])
    each = "seeds: the mean, and each seed's figure" if seeds > 1 else "seed"
    seen = f"Every way ran with {seeds} {each}. {trained(case)}".rstrip()
    speed = (
        "Speed: in onnxruntime, one row on one thread of the processor, relative to the original; median and "
        f"quartiles of {rounds} rounds in which the models take turns."
    )
    notes = [case.note, seen, *([_PEERS] if case.peers else []), speed]
    table = [line(way, items, case.judgement, found[ORIGINAL][0], taken) for way, items in found.items()]
    script, _, model = name.partition("-")
    where, option = ("-cuda", " --device cuda") if device != "cpu" else ("", "")
    again = f"python benchmarks/{script}.py --model {model} --seeds {seeds} --rounds {rounds}{option}"
    write(f"{name}{where}", case.title, table, notes, again)


def trained(case: Case) -> str:
    """Say for how long networks are trained; empty where none is."""
    epochs = case.plain.epochs
    if any(settings.get("epochs") for steps in case.ours.values() for step in steps for settings in step.values()):
        return f"All see the same rows for {epochs} epochs."
    return f"The others are trained on the same rows for {epochs} epochs, ours not at all." if case.peers else ""


_PEERS = (
    "torch-pruning's networks are fine-tuned on the figure itself (the classes or vectors it is about) with AdamW and "
    "one cycle of the learning rate; its multiply-accumulates are approached in steps of 1 % of the channels."
)


def line(
    way: str, items: Sequence[Made], judgement: Judgement, original: Made, taken: Mapping[str, Sequence[float]]
) -> dict[str, str]:
    """Write a way's line of the table."""
    scores = [item.score for item in items]
    mean = statistics.mean(scores)
    speed = statistics.median(a / b for a, b in zip(taken[ORIGINAL], taken[way], strict=True))
    each = f" ({', '.join(f'{value:.4f}' for value in scores)})" if len(scores) > 1 and way != ORIGINAL else ""
    told = {
        "way": way,
        "multiply-accumulates": f"{items[0].macs:.1%}",
        judgement.name: f"{mean:.4f}{each}",
        "lost": f"{100 * (original.score - mean):.2f} points",
        "speed": ratio(taken[ORIGINAL], taken[way]),
        "of what multiply-accumulates promise": f"{speed * items[0].macs:.0%}",
        "took": f"{statistics.median(item.cpu for item in items):.0f} CPU s, "
        f"{statistics.median(item.wall for item in items) / 60:.1f} min",
    }
    return told if way != ORIGINAL else {**dict.fromkeys(told, ""), "way": way, judgement.name: f"{mean:.4f}"}
