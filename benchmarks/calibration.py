"""What calibration costs: CPU time and memory beside plain inference of the same images, and beside onnxruntime's.

Usage: ``python benchmarks/calibration.py [--rounds 5] [--images 64] [--only lite0] [--device cuda:0]``, after what
``recipes/lite0-int8.yaml`` asks for. Every way runs in a process of its own, the ways taking turns; CPU time is that of
all its threads (with a GPU the time of the wall), and memory its peak above what it held once images and an idle
session of the model were loaded.
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


def inference(model: Path, batches: Iterator[np.ndarray], size: int, device: str) -> None:
    """Run every image."""
    from modelpack.numerics import runtime

    opened = runtime.session(model, device, entries=runtime.AT_REST)
    name = opened.get_inputs()[0].name
    for batch in batches:
        for start in range(0, len(batch), size):
            runtime.execute(opened, {name: batch[start : start + size]})


def ours(model: Path, batches: Iterator[np.ndarray], device: str, *, histograms: bool, whole: bool) -> None:
    """Calibrate, and quantize with what was found if `whole`."""
    from modelpack.numerics import graph, onnxfile
    from modelpack.numerics.quantization import engine
    from modelpack.numerics.quantization.calibrate import Asked, calibrate
    from modelpack.numerics.quantization.settings import Evidence, Settings
    from modelpack.tensors import TensorSpec

    read = onnxfile.read(model)
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(read)["inputs"].items()}
    feeds = ({next(iter(inputs)): batch} for batch in batches)
    found = calibrate(read, "model", Asked(histograms=histograms), lambda _label: feeds, inputs, device=device)
    if whole:
        onnxfile.encode(engine.quantize(read, Settings(), Evidence(calibration=found, device=device)).outcome.model)


def theirs(model: Path, batches: Iterator[np.ndarray], method: str, device: str) -> None:
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
            calibration_providers=["CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"],
        )


DO: dict[str, Callable[[Path, Iterator[Any], str], None]] = {
    "inference": lambda model, batches, device: inference(model, batches, 1, device),
    "batches": lambda model, batches, device: inference(model, batches, BATCH, device),
    "minmax": lambda model, batches, device: ours(model, batches, device, histograms=False, whole=False),
    "histograms": lambda model, batches, device: ours(model, batches, device, histograms=True, whole=False),
    "quantize": lambda model, batches, device: ours(model, batches, device, histograms=False, whole=True),
    "ort_minmax": lambda model, batches, device: theirs(model, batches, "MinMax", device),
    "ort_percentile": lambda model, batches, device: theirs(model, batches, "Percentile", device),
}


def child(way: str, model: Path, place: Path, count: int, device: str) -> None:
    """Do one way and print what it cost: seconds, and bytes above the idle session."""
    from modelpack.numerics import runtime
    from modelpack.numerics.measure import memory

    for name in IMPORTS:  # before the clock starts
        importlib.import_module(name)
    idle = runtime.session(model, device, entries=runtime.AT_REST)
    next(images(place, BATCH))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    clock = time.process_time if device == "cpu" else time.perf_counter
    held, began = memory.resident(), clock()
    DO[way](model, images(place, count), device)
    print(json.dumps({"seconds": clock() - began, "bytes": max(memory.peak() - held, 0)}))
    del idle


def measured(way: str, model: Path, place: Path, count: int, device: str) -> dict[str, float]:
    """Let a fresh process do one way."""
    arguments = [way, str(model), str(place), str(count), device]
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


def table(short: str, rounds: int, count: int, device: str) -> list[dict[str, str]]:
    """Measure one network."""
    with tempfile.TemporaryDirectory() as folder:
        model, place = prepared(RECIPES[short], Path(folder))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, results in found.items():
                results.append(measured(way, model, place, count, device))
        many = {way: measured(way, model, place, 512, device) for way in ("minmax", "histograms")}
    rows = []
    for way, results in found.items():
        row = {"network": NAMES[short], "way": WAYS[way]}
        row["CPU s" if device == "cpu" else "s"] = f"{statistics.median(item['seconds'] for item in results):.2f}"
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
        way, model, place, count, device = sys.argv[2:]
        child(way, Path(model), Path(place), int(count), device)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only", choices=list(RECIPES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    asked = parser.parse_args()
    chosen = [short for short in RECIPES if asked.only in (None, short)]
    rows = [row for short in chosen for row in table(short, asked.rounds, asked.images, asked.device)]
    cpu = asked.device == "cpu"
    note = (
        f"{'CPU seconds of all threads' if cpu else 'Seconds'}, and the peak of the host's memory above the idle "
        f"session, for {asked.images} images; medians of {asked.rounds} rounds in which the ways take turns, each in a "
        f"process of its own. Modelpack reads batches of {BATCH} as its data sources give them; onnxruntime's "
        "calibrators take single images."
    )
    only = f" --only {asked.only}" if asked.only else ""
    only += "" if cpu else f" --device {asked.device}"
    command = f"python benchmarks/calibration.py --rounds {asked.rounds} --images {asked.images}{only}"
    write("calibration", "What calibration costs", rows, [note], command, device=asked.device)


if __name__ == "__main__":
    main()
