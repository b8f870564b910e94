"""What calibration costs: CPU time and memory beside plain inference of the same images, and beside onnxruntime's.

Usage: ``python benchmarks/calibration.py [--rounds 5] [--images 64] [--only lite0]``, after what
``recipes/lite0-int8.yaml`` asks for. Every way runs in a process of its own, the ways taking turns; CPU time is that of
all its threads, and memory its peak above what it held once images and an idle session of the model were loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from table import write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"lite0": ROOT / "recipes" / "lite0-int8.yaml", "resnet18": ROOT / "benchmarks" / "resnet18.yaml"}
NAMES = {"lite0": "EfficientNet-Lite0", "resnet18": "ResNet-18 (random weights)"}
BATCH = 32
IMAGE = (3, 224, 224)
WAYS = {
    "inference": "plain inference, one image at a time",
    "batches": f"plain inference, {BATCH} images at a time",
    "minmax": "modelpack, calibrate without histograms",
    "histograms": "modelpack, calibrate with histograms",
    "quantize": "modelpack, calibrate and quantize, min-max",
    "ort_minmax": "onnxruntime, quantize_static, min-max",
    "ort_percentile": "onnxruntime, quantize_static, percentile",
}

IMPORTS = (
    "onnxruntime.quantization",
    "modelpack.numerics.quantization.calibrate",
    "modelpack.numerics.quantization.engine",
)


def images(place: Path, count: int) -> Iterator[np.ndarray]:
    """Read images of 3x224x224 in batches, from the start again where there are too few.

    The file is not mapped into memory: mapped pages would count as the process's own.
    """
    import numpy as np

    held = place.stat().st_size // (4 * math.prod(IMAGE))
    for start in range(0, count, BATCH):
        offsets = [number % held for number in range(start, min(start + BATCH, count))]
        batch = np.empty((len(offsets), *IMAGE), np.float32)
        with place.open("rb") as file:
            for row, offset in zip(batch, offsets, strict=True):
                file.seek(offset * row.nbytes)
                file.readinto(row)
        yield batch


def inference(model: Path, batches: Iterator[np.ndarray], size: int) -> None:
    """Run every image."""
    from modelpack.numerics import runtime

    opened = runtime.session(model, entries=runtime.AT_REST)
    name = opened.get_inputs()[0].name
    for batch in batches:
        for start in range(0, len(batch), size):
            runtime.execute(opened, {name: batch[start : start + size]})


def ours(model: Path, batches: Iterator[np.ndarray], *, histograms: bool, whole: bool) -> None:
    """Calibrate, and quantize with what was found if `whole`."""
    from modelpack.numerics import graph, onnxfile
    from modelpack.numerics.quantization import engine
    from modelpack.numerics.quantization.calibrate import Asked, calibrate
    from modelpack.numerics.quantization.settings import Evidence, Settings
    from modelpack.tensors import TensorSpec

    read = onnxfile.read(model)
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(read)["inputs"].items()}
    feeds = ({next(iter(inputs)): batch} for batch in batches)
    found = calibrate(read, "model", Asked(histograms=histograms), lambda _label: feeds, inputs)
    if whole:
        onnxfile.encode(engine.quantize(read, Settings(), Evidence(calibration=found)).outcome.model)


def theirs(model: Path, batches: Iterator[np.ndarray], method: str) -> None:
    """Quantize by onnxruntime, one image at a time, as its examples do."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    class Reader:
        def __init__(self) -> None:
            self.rest = ({"image": batch[place : place + 1]} for batch in batches for place in range(len(batch)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            str(model),
            str(Path(folder) / "made.onnx"),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )


DO: dict[str, Callable[[Path, Iterator[Any]], None]] = {
    "inference": lambda model, batches: inference(model, batches, 1),
    "batches": lambda model, batches: inference(model, batches, BATCH),
    "minmax": lambda model, batches: ours(model, batches, histograms=False, whole=False),
    "histograms": lambda model, batches: ours(model, batches, histograms=True, whole=False),
    "quantize": lambda model, batches: ours(model, batches, histograms=False, whole=True),
    "ort_minmax": lambda model, batches: theirs(model, batches, "MinMax"),
    "ort_percentile": lambda model, batches: theirs(model, batches, "Percentile"),
}


def child(way: str, model: Path, place: Path, count: int) -> None:
    """Do one way and print what it cost: CPU seconds, and bytes above the idle session."""
    from modelpack.numerics import runtime
    from modelpack.numerics.measure import memory

    for name in IMPORTS:  # before the clock starts
        importlib.import_module(name)
    idle = runtime.session(model, entries=runtime.AT_REST)
    next(images(place, BATCH))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    held, began = memory.resident(), time.process_time()
    DO[way](model, images(place, count))
    print(json.dumps({"seconds": time.process_time() - began, "bytes": max(memory.peak() - held, 0)}))
    del idle


def measured(way: str, model: Path, place: Path, count: int) -> dict[str, float]:
    """Let a fresh process do one way."""
    arguments = [way, str(model), str(place), str(count)]
    ran = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def prepared(path: Path, folder: Path) -> tuple[Path, Path]:
    """Export a recipe's model and gather its calibration images."""
    import numpy as np

    from modelpack import engine, recipe
    from modelpack.budget import Budget
    from modelpack.store import Store

    whole = recipe.load(path)
    short = dataclasses.replace(
        whole, steps=tuple(step for step in whole.steps if step.id in ("model", "export")), budget=Budget(), deciding={}
    )
    store = Store(folder / path.stem)
    store.prepare()
    run = engine.run(engine.open_desk(short, store, "cpu"), lambda _event: None)
    entry = next(iter(whole.data.values()))
    name = next(iter(whole.inputs))
    place = folder / f"{path.stem}.images"
    np.concatenate([batch[name] for batch in entry.open(whole.inputs).batches()]).tofile(place)
    return store.get(run.step("export").artifact).file("model.onnx"), place


def table(short: str, rounds: int, count: int) -> list[dict[str, str]]:
    """Measure one network."""
    with tempfile.TemporaryDirectory() as folder:
        model, place = prepared(RECIPES[short], Path(folder))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, results in found.items():
                results.append(measured(way, model, place, count))
        many = {way: measured(way, model, place, 512) for way in ("minmax", "histograms")}
    rows = []
    for way, results in found.items():
        row = {"network": NAMES[short], "way": WAYS[way]}
        row["CPU s"] = f"{statistics.median(item['seconds'] for item in results):.2f}"
        for reference, label in (("inference", "× one at a time"), ("batches", f"× {BATCH} at a time")):
            pairs = zip(results, found[reference], strict=True)
            row[label] = f"{statistics.median(one['seconds'] / other['seconds'] for one, other in pairs):.2f}"
        row["MB"] = f"{max(item['bytes'] for item in results) / 1e6:.0f}"
        row["MB at 512 images"] = f"{many[way]['bytes'] / 1e6:.0f}" if way in many else ""
        rows.append(row)
    return rows


def main() -> None:
    """Measure, and write the table."""
    if sys.argv[1:2] == ["--child"]:
        way, model, place, count = sys.argv[2:]
        child(way, Path(model), Path(place), int(count))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only", choices=list(RECIPES))
    asked = parser.parse_args()
    rows = [row for short in RECIPES if asked.only in (None, short) for row in table(short, asked.rounds, asked.images)]
    note = (
        f"CPU seconds of all threads, and the peak of memory above the idle session, for {asked.images} images; "
        f"medians of {asked.rounds} rounds in which the ways take turns, each in a process of its own. Modelpack reads "
        f"batches of {BATCH} as its data sources give them; onnxruntime's calibrators take single images."
    )
    only = f" --only {asked.only}" if asked.only else ""
    command = f"python benchmarks/calibration.py --rounds {asked.rounds} --images {asked.images}{only}"
    write("calibration", "What calibration costs", rows, [note], command)


if __name__ == "__main__":
    main()
