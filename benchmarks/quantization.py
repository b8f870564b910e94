"""Static 8-bit quantization of EfficientNet-Lite0: modelpack's beside onnxruntime's own, on the same photos.

Usage: ``python benchmarks/quantization.py [--rounds 60]``, after what ``recipes/lite0-int8.yaml`` asks for.

All methods calibrate on the recipe's calibration photos and are judged on its labelled ones, which none has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from table import ratio, write

from modelpack import engine, recipe
from modelpack.budget import Budget
from modelpack.steps import MODEL
from modelpack.store import Store

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "lite0-int8.yaml"
BEST = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}


class Photos(CalibrationDataReader):
    """Hands onnxruntime's calibrator one photo at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.rest = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Give the next photo, or None when there is none left."""
        image = next(self.rest, None)
        return None if image is None else {"image": image[None]}


def arrays(name: str) -> dict[str, np.ndarray]:
    """Read one of the recipe's data entries whole."""
    loaded = recipe.load(RECIPE)
    batches = list(loaded.data[name].open(loaded.inputs).batches())
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def candidates(folder: Path) -> dict[str, Path]:
    """Make every quantized file; the first one is the fp32 model."""
    whole = recipe.load(RECIPE)
    before = [step for step in whole.steps if step.id in (MODEL, "export")]
    given = next(step for step in whole.steps if step.id == "quantize")
    ways = {
        name: given.config.model_copy(update={"correction": how})
        for name, how in (("plain", "none"), ("fit", "rounding"))
    }
    steps = (*before, *(dataclasses.replace(given, id=name, config=config) for name, config in ways.items()))
    store = Store(folder / "store")
    store.prepare()
    short = dataclasses.replace(whole, steps=steps, budget=Budget(), deciding={})
    run = engine.run(engine.open_desk(short, store, "cpu"), lambda _event: None)
    fp32, ours, fitted = (store.get(run.step(step).artifact).file("model.onnx") for step in ("export", *ways))
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(fp32), str(prepared))
    images = arrays("calibration")["image"]
    made = {"fp32": fp32, "modelpack": ours, "modelpack, reconstructed": fitted}
    settings: dict[str, dict[str, Any]] = {
        "onnxruntime, its defaults": {},
        "onnxruntime, per channel, U8S8": BEST,
    }
    for number, (name, options) in enumerate(settings.items()):
        made[name] = folder / f"rival{number}.onnx"
        quantize_static(str(prepared), str(made[name]), Photos(images), **options)
    return made


def session(path: Path) -> onnxruntime.InferenceSession:
    """Open a model on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(opened: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Run every photo."""
    return np.concatenate([opened.run(None, {"image": image[None]})[0] for image in images])


def seconds(sessions: dict[str, Any], image: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Time single photos, the models taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 5):
        for name, opened in sessions.items():
            began = time.perf_counter()
            opened.run(None, {"image": image[None]})
            if turn >= 5:
                taken[name].append(time.perf_counter() - began)
    return taken


def main() -> None:
    """Quantize, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    logging.disable(logging.WARNING)
    test = arrays("test")
    with tempfile.TemporaryDirectory() as folder:
        made = candidates(Path(folder))
        sessions = {name: session(path) for name, path in made.items()}
        scores = {name: outputs(opened, test["image"]) for name, opened in sessions.items()}
        taken = seconds(sessions, test["image"][0], rounds)
        sizes = {name: path.stat().st_size for name, path in made.items()}
    fp32 = scores["fp32"]
    rows = []
    for name, found in scores.items():
        noise = float(((found - fp32) ** 2).sum())
        rows.append(
            {
                "method": name,
                "accuracy": f"{(found.argmax(1) == test['label']).mean():.3f}",
                "agreement": f"{(found.argmax(1) == fp32.argmax(1)).mean():.3f}",
                "SQNR": f"{10 * np.log10(float((fp32**2).sum()) / noise):.1f} dB" if noise else "",
                "size": f"{sizes[name] / sizes['fp32']:.3f}",
                "speed": ratio(taken["fp32"], taken[name]),
            }
        )
    note = (
        f"Accuracy on {len(test['label'])} photos (one standard error is 3.5 points), agreement with fp32 and "
        "signal-to-quantization-noise ratio on the same. Size and speed are relative to fp32; speed on one thread, one "
        f"photo at a time, median and quartiles of {rounds} rounds in which the models take turns."
    )
    write("quantization", "EfficientNet-Lite0 in 8 bits", rows, [note], "python benchmarks/quantization.py")


if __name__ == "__main__":
    main()
