"""Quantization side by side: modelpack, onnxruntime, NNCF and onnxsim on the same models, rows and clock.

Usage: ``python benchmarks/quantization.py [--model lite0] [--rounds 60] [--keep FOLDER]``

It needs ``pip install --editable '.[dev]'`` and what ``recipes/lite0-int8.yaml``, ``recipes/minilm-int8.yaml`` and
``recipes/fashion-prune-distill.yaml`` say that they need. A model keeps its table until it is measured again.

Every method calibrates on the same rows and is judged on the same others. Each runs in a process of its own; one that
fails is a line that says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import clock
import methods
import numpy as np
from table import ratio, write
from tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rows import Feed
    from tasks import Answers, Material, Task

FP32 = "fp32"


def answers(path: Path, questions: Mapping[str, Sequence[Feed]]) -> Answers:
    """Ask a model everything; its first output counts."""
    opened = clock.session(path, 0)
    return {name: np.concatenate([opened.run(None, feed)[0] for feed in feeds]) for name, feeds in questions.items()}


def quantized(task: Task, folder: Path) -> dict[str, dict[str, Any]]:
    """Run every method that fits the task; give each one's report, those of an earlier run in the folder included."""
    return {
        method.name: methods.run(method, folder, task.kind) for method in methods.METHODS if task.kind in method.kinds
    }


def row(task: Task, material: Material, report: Mapping[str, Any], fp32: Answers) -> dict[str, str]:
    """Judge one method's file; a file that onnxruntime refuses is told like a method that failed."""
    if "error" in report:
        return {"fails": report["error"]}
    path = Path(report["file"])
    try:
        found = answers(path, material.questions)
    except Exception as error:  # noqa: BLE001 whatever onnxruntime raises is a line of the table
        return {"fails": f"onnxruntime cannot run it: {str(error).strip().splitlines()[0]}"[:200]}
    return {
        **task.judge(found, fp32, material.truth),
        "size": f"{path.stat().st_size / 1e6:.2f} MB",
        "quantizing": f"{report['cpu']:.0f} CPU s, {report['memory'] / 1e6:.0f} MB",
    }


def measure(name: str, rounds: int, folder: Path) -> None:
    """Quantize, judge and time one task's model, and write its table."""
    task = TASKS[name]
    material = task.gather()
    shutil.copyfile(material.fp32, folder / "fp32.onnx")
    np.savez(folder / "calibration.npz", **material.calibration)
    reports = quantized(task, folder)
    fp32 = answers(material.fp32, {**material.questions, **material.lessons})
    lines = {FP32: {**task.judge(fp32, fp32, material.truth), "size": f"{material.fp32.stat().st_size / 1e6:.2f} MB"}}
    lines |= {method: row(task, material, report, fp32) for method, report in reports.items()}
    running = {FP32: material.fp32} | {
        method: Path(report["file"]) for method, report in reports.items() if "fails" not in lines[method]
    }
    speeds = {column: clock.turns(running, feed, rounds) for column, feed in material.shapes.items()} if rounds else {}
    for column, taken in speeds.items():
        for method in running:
            lines[method][column] = ratio(taken[FP32], taken[method])
    lines[FP32] |= {"quantizing": "", **({"fails": ""} if len(running) < len(lines) else {})}
    note = (
        "Size and speed: of the model file, and relative to fp32 on one thread; median and quartiles of up to "
        f"{rounds} rounds in which the models take turns. Quantizing: CPU seconds, and the most memory beyond what "
        "the libraries take once imported; modelpack's include its checks and its comparison with fp32."
    )
    rows = [{"method": method, **line} for method, line in lines.items()]
    command = f"python benchmarks/quantization.py --model {name} --rounds {rounds}"
    write(f"quantization-{name}", task.title, rows, [task.note, note], command)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=TASKS, action="append", help="all when absent")
    parser.add_argument("--rounds", type=int, default=60, help="0 leaves speed out")
    parser.add_argument("--keep", type=Path, help="keep the quantized files here, and use those that are here already")
    options = parser.parse_args()
    for name in options.model or TASKS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep.resolve() / name if options.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            measure(name, options.rounds, folder)


if __name__ == "__main__":
    main()
