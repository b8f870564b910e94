"""The ways to quantize that are compared, each run in a process of its own so that its cost can be told.

Usage, by ``quantization.py``: ``python benchmarks/methods.py NAME FOLDER KIND``
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["NNCF_CI"] = "1"  # no telemetry

import numpy as np
import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONVOLUTIONS = frozenset({"convolutions"})  # correction takes minutes for a transformer, and `smooth` gains more there
TRANSFORMER = frozenset({"transformer"})
EVERY = CONVOLUTIONS | TRANSFORMER | {"speed"}
LIMIT = 600
"""Seconds that a method may take."""


@dataclass(frozen=True)
class Method:
    """One line of every table.

    Attributes:
        name: What the table calls it.
        imports: Modules that are imported before the clock starts.
        make: Reads ``fp32.onnx`` and ``calibration.npz`` of a folder, and writes a file; takes both, and the kind.
        kinds: Networks that it is meant for.
    """

    name: str
    imports: tuple[str, ...]
    make: Callable[[Path, Path, str], None]
    kinds: frozenset[str] = EVERY

    @property
    def stem(self) -> str:
        """The name as that of a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def rows(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """Read the calibration rows one by one."""
    with np.load(folder / "calibration.npz") as held:
        arrays = {name: held[name] for name in held.files}
    for number in range(len(next(iter(arrays.values())))):
        yield {name: value[number : number + 1] for name, value in arrays.items()}


def modelpack(**settings: Any) -> Callable[[Path, Path, str], None]:
    """Quantize as a recipe does, checks and comparison included."""

    def make(folder: Path, made: Path, _kind: str) -> None:
        from modelpack import engine, recipe
        from modelpack.store import Store

        step = {"quantize": {**settings, "data": "calibration"}}
        body = {
            "model": {"onnx": str(folder / "fp32.onnx")},
            "data": {"calibration": {"npz": {"path": str(folder / "calibration.npz"), "batch": 1}}},
            "stages": [step],
        }
        path = made.with_suffix(".yaml")
        path.write_text(json.dumps(body), encoding="utf-8")  # JSON is YAML
        store = Store(made.with_suffix(".store"))
        store.prepare()
        run = engine.run(engine.open_desk(recipe.load(path), store, "cpu"), lambda _event: None)
        made.write_bytes(store.get(run.step("quantize").artifact).file("model.onnx").read_bytes())

    return make


def peer(function: Callable[..., None]) -> Callable[[Path, Path, str], None]:
    """Quantize by a function of `peers`."""
    return lambda folder, made, _kind: function(folder / "fp32.onnx", rows(folder), made)


def nncf(folder: Path, made: Path, kind: str) -> None:
    """Quantize by NNCF, told whether the network is a transformer."""
    peers.nncf_static(folder / "fp32.onnx", rows(folder), made, transformer=kind == "transformer")


OURS = ("modelpack.engine", "modelpack.numerics.quantization.engine")
ENGINE = ("onnxruntime.quantization",)
METHODS = (
    Method("modelpack, static", OURS, modelpack(method="static")),
    Method(
        "modelpack, static, `correction: rounding`",
        OURS,
        modelpack(method="static", correction="rounding"),
        CONVOLUTIONS,
    ),
    Method("modelpack, static, `smooth: 0.5`", OURS, modelpack(method="static", smooth=0.5), TRANSFORMER),
    Method("modelpack, dynamic", OURS, modelpack(method="dynamic"), TRANSFORMER),
    Method("modelpack, int4 weights", OURS, modelpack(method="weight_only"), TRANSFORMER),
    Method(
        "modelpack, int4 weights, `rounding: hqq`", OURS, modelpack(method="weight_only", rounding="hqq"), TRANSFORMER
    ),
    Method("onnxruntime, its defaults", ENGINE, peer(peers.onnxruntime_static)),
    Method("onnxruntime, per channel, U8S8", ENGINE, peer(peers.onnxruntime_best)),
    Method("onnxruntime, dynamic, per channel", ENGINE, peer(peers.onnxruntime_dynamic), TRANSFORMER),
    Method("NNCF, activations per tensor", ("nncf",), nncf),
    Method("onnxsim", ("onnxsim",), peer(peers.onnxsim_static)),
)


def run(method: Method, folder: Path, kind: str) -> dict[str, Any]:
    """Run a method in a process of its own, on one core; what the folder holds already is taken as it is.

    Returns:
        ``file`` with ``cpu`` seconds and ``memory`` in bytes, both without imports; or ``error``, one line.
    """
    report = folder / f"{method.stem}.json"
    if report.exists():
        return json.loads(report.read_text(encoding="utf-8"))
    command = [sys.executable, __file__, method.name, str(folder), kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, cwd=folder)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {LIMIT} s"}
    if report.exists():
        return json.loads(report.read_text(encoding="utf-8"))
    return {"error": f"its process ended with {done.returncode}"}


def measured(method: Method, folder: Path, kind: str) -> dict[str, Any]:
    """Run a method here and measure it."""
    for name in method.imports:
        importlib.import_module(name)
    made = folder / f"{method.stem}.onnx"
    memory, began = peak(), time.process_time()
    try:
        method.make(folder, made, kind)
    except Exception as error:  # noqa: BLE001 whatever a quantizer raises is a line of the table
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return {"error": f"{type(error).__name__}: {text}"[:200]}
    return {"file": str(made), "cpu": time.process_time() - began, "memory": peak() - memory}


def peak() -> int:
    """Give the most memory that this process has held so far, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    chosen = next(method for method in METHODS if method.name == sys.argv[1])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    told = measured(chosen, Path(sys.argv[2]), sys.argv[3])
    (Path(sys.argv[2]) / f"{chosen.stem}.json").write_text(json.dumps(told), encoding="utf-8")
