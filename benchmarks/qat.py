"""Whether training with rounding gives back what rounding costs, on a network with little left to spare.

Usage: ``python benchmarks/qat.py [--seeds 3] [--on test]``, after ``pip install "modelpack[demo]"``.

The digits network of the quickstart loses 95 % of its multiply-accumulates and learns again; then it is rounded to 8
bits in several ways. ``--on validation`` measures on the rows to choose settings by, so that test rows stay unseen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the network is so small that threads would only wait for each other

from table import write

from modelpack import engine, recipe
from modelpack.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DIGITS = Path(__file__).resolve().parents[1] / "recipes" / "digits"
FP32 = "fp32"
DISTILL = {"teacher": "model", "data": "lesson", "eval_data": "validation", "task": "none", "epochs": 12, "lr": 0.002}
QAT = {"data": "lesson", "eval_data": "validation", "epochs": 8, "lr": 3e-4}
WAYS = {
    FP32: "fp32",
    "static": "static",
    "rounding": "static, `correction: rounding`",
    "imitating": "qat, `teacher: distill`",
    "learning": "qat, `teacher: model`",
    "longer": "fp32 distilled for 8 epochs more, then static",
}
"""Steps whose file is judged, and what the table calls them."""

Figures = dict[str, float]
"""What is measured of one file."""


def body(seed: int, rows: str) -> dict[str, Any]:
    """Write the recipe: one pruned network, every way to round it, and each judged on some rows."""
    static = {"method": "static", "data": "train"}
    ways = [
        {"quantize": static, "id": "static", "from": FP32},
        {"quantize": {**static, "correction": "rounding"}, "id": "rounding", "from": FP32},
        {"qat": {**QAT, "teacher": "distill"}, "id": "imitation", "from": "distill"},
        {"export": {"data": "train"}, "id": "imitating", "from": "imitation"},
        {"qat": {**QAT, "teacher": "model"}, "id": "lesson", "from": "distill"},
        {"export": {"data": "train"}, "id": "learning", "from": "lesson"},
        {"distill": {**DISTILL, "epochs": QAT["epochs"], "lr": QAT["lr"]}, "id": "again", "from": "distill"},
        {"export": {"data": "train"}, "id": "again-fp32", "from": "again"},
        {"quantize": static, "id": "longer", "from": "again-fp32"},
    ]
    judged = {"data": rows, "metrics": ["accuracy"], "against": FP32}
    return {
        "name": "qat",
        "seed": seed,
        "model": {
            "factory": "digits/net.py:build",
            "weights": "digits/digits.safetensors",
            "inputs": {"image": {"shape": ["batch", 1, 8, 8], "range": [0, 1]}},
        },
        "data": {
            name: {"python": {"callable": f"digits/data.py:{name}", "batch": 64}}
            for name in ("train", "lesson", "validation", "test")
        },
        "stages": [
            {"prune": {"macs": 0.05, "importance": "taylor", "data": "train"}},
            {"recover": {"data": "train", "epochs": 1}},
            {"distill": DISTILL},
            {"export": {"data": "train"}, "id": FP32},
            *ways,
            *({"evaluate": judged, "id": f"{name}-judged", "from": name} for name in WAYS),
        ],
    }


def measure(seed: int, rows: str) -> dict[str, Figures]:
    """Run the recipe in an empty store; give each way's figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(DIGITS, folder / "digits")
        (folder / "qat.yaml").write_text(json.dumps(body(seed, rows)), encoding="utf-8")  # JSON is YAML
        store = Store(folder / "store")
        store.prepare()
        run = engine.run(engine.open_desk(recipe.load(folder / "qat.yaml"), store, "cpu"), lambda _event: None)
        return {
            name: {
                **run.step(f"{name}-judged").metrics,
                "bytes": store.get(run.step(name).artifact).file("model.onnx").stat().st_size,
                **{key: value for key, value in run.step(name).metrics.items() if key == "export_lsb_share"},
            }
            for name in WAYS
        }


def line(way: str, figures: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Write a way's line of the table: the mean of all seeds, and each."""
    rounded = way != FP32
    trained = "export_lsb_share" in figures[0] and rounded
    return {
        "way": WAYS[way],
        "accuracy": _told(figures, "accuracy", "{:.4f}".format),
        "agreement": _told(figures, "agreement", "{:.4f}".format) if rounded else "",
        "SQNR": f"{_told(figures, 'sqnr_db', '{:.1f}'.format)} dB" if rounded else "",
        "within one step of torch": f"{min(item['export_lsb_share'] for item in figures):.2%}" if trained else "",
        "size": f"{_told(figures, 'bytes', lambda count: f'{count / 1000:.1f}')} kB",
    }


def _told(figures: Sequence[Mapping[str, float]], name: str, shown: Callable[[float], str]) -> str:
    values = [item[name] for item in figures]
    each = ", ".join(shown(value) for value in values)
    return f"{shown(statistics.mean(values))} ({each})" if len(values) > 1 else each


def main() -> None:
    """Measure with some seeds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--on", choices=("test", "validation"), default="test", help="only `test` writes the table")
    options = parser.parse_args()
    found = [measure(seed, options.on) for seed in range(options.seeds)]
    rows = [line(way, [item[way] for item in found]) for way in WAYS]
    if options.on == "validation":
        print(json.dumps(rows, indent=2))
        return
    note = (
        f"The quickstart's network cut to 5 % of its multiply-accumulates and distilled for {DISTILL['epochs']} "
        "epochs, once for each seed: the mean, and each seed's figure. Accuracy on 597 rows that nothing was trained, "
        "calibrated or chosen on; agreement and SQNR compare with the fp32 model of the first line. Within one step: "
        "the lowest share of values, over seeds and optimization levels, in which the exported file and the torch "
        f"model that rounds differ by no more than the last bit. qat learns for {QAT['epochs']} epochs; the last line "
        "gives as much training to the float model. The rates of qat were chosen on the validation rows. One row is "
        "0.0017 of accuracy, and the standard error of each accuracy 0.005."
    )
    write("qat", "Training with quantization", rows, [note], f"python benchmarks/qat.py --seeds {options.seeds}")


if __name__ == "__main__":
    main()
