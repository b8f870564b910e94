"""What splitting layers in two gives: size, closeness and time in onnxruntime of MiniLM, before any recovery.

Usage: ``python benchmarks/low_rank.py [--energy 0.95 --energy 0.98] [--rounds 30]``, after what
``recipes/minilm-int8.yaml`` asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import yaml
from table import write

from modelpack import engine, recipe
from modelpack.store import Store

if TYPE_CHECKING:
    from modelpack.record import Run

MINILM = Path(__file__).resolve().parents[1] / "recipes" / "minilm-int8.yaml"
STEPS = ("split", "made", "judged", "timed")


def ids(energy: float) -> tuple[str, ...]:
    """Name the steps of one energy, in order: split, exported, compared with the original, timed."""
    return tuple(f"{name}-{round(1000 * energy)}" for name in STEPS)


def body(energies: list[float], rounds: int) -> str:
    """Write the recipe: the model and data of another one, split at each energy. JSON is YAML."""
    known = yaml.safe_load(MINILM.read_text(encoding="utf-8"))
    judge = {"data": "news", "metrics": ["spearman_pairs"], "task": "values", "against": "export"}
    bench = {"data": "news", "against": "export", "batch": [1, 8], "rounds": rounds, "seconds": 60}
    stages: list[dict[str, Any]] = [{"export": {"data": "calibration"}}]
    for energy in energies:
        split, made, judged, timed = ids(energy)
        stages += [
            {"low_rank": {"energy": energy, "data": "calibration"}, "id": split, "from": "model"},
            {"export": {"data": "calibration"}, "id": made, "from": split},
            {"evaluate": judge, "id": judged, "from": made},
            {"bench": bench, "id": timed, "from": made},
        ]
    named = {name: known[name] for name in ("model", "data")}
    return json.dumps({"name": "low-rank", "allow": ["unrecovered"], **named, "stages": stages})


def row(store: Store, run: Run, energy: float) -> dict[str, Any]:
    """Give the line of the table for one energy."""
    split, made, judged, timed = (run.step(name) for name in ids(energy))
    layers, times = (store.get(step.artifact).manifest.record["results"] for step in (split, timed))
    ratios = {cell["batch"]: cell["ratio"] for cell in times["bench"]["cells"] if cell["ratio"]}
    split_layers = [item["layer"] for item in layers["layers"]]
    size, whole = made.metrics["model_bytes"], run.step("export").metrics["model_bytes"]
    return {
        "energy": f"{energy:.1%}",
        "layers split": f"{len(split_layers)} of {len({*split_layers, *layers['left_alone']})}",
        "multiply-adds": f"{split.metrics['macs']:.0%}",
        "size": f"{size / 1e6:.1f} MB ({size / whole:.0%})",
        "cosine": f"{judged.metrics['cosine']:.3f}",
        **{
            f"speed, batch {batch}": f"{found['value']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"
            for batch, found in ratios.items()
        },
    }


def main() -> None:
    """Run the recipe, and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--energy", type=float, action="append", help="0.95 and 0.98 when absent")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    energies = options.energy or [0.95, 0.98]
    text = body(energies, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        store.prepare()
        desk = engine.open_desk(recipe.parse(text, MINILM.with_name("low-rank.yaml")), store, "cpu")
        run = engine.run(desk, lambda _event: None)
        rows = [row(store, run, energy) for energy in energies]
    note = (
        "Every layer keeps that share of the energy of what it gives on the recipe's calibration texts, where its "
        "halves are smaller and faster than it is; embeddings stay. Cosine with the original on the news texts, "
        "untrained. Speed against the original's export on one thread, both taking turns, with the 95 % interval."
    )
    write("low-rank", "MiniLM with layers split in two", rows, [note], "python benchmarks/low_rank.py")


if __name__ == "__main__":
    main()
