"""Whether an image should hold its model optimised beforehand: how fast a session is created of it, and then runs.

Usage: ``python benchmarks/creation.py NAME=FILE.onnx …  [--rounds 15]``

The same model is loaded four ways that take turns: as it is, as onnxruntime saves it after its EXTENDED optimisations
(the highest level without a layout for one processor), and the same in onnxruntime's own format, read from a file and
used in place. CPU time of one thread is compared, and outputs bit by bit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from table import ratio, write

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it while it is imported
import onnxruntime

_IN_PLACE = ("session.use_ort_model_bytes_directly",)
_ROWS, _LENGTH = 1, 64


def session(model: str | bytes, saved: Path | None = None, entries: dict[str, str] | None = None) -> Any:
    """Create a session as the server does; with `saved`, at the EXTENDED level, and keep what it made of the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if saved:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(saved)
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(created: Any) -> dict[str, np.ndarray]:
    """Make one row for every input, the same each time."""
    random = np.random.default_rng(0)
    found = {}
    for node in created.get_inputs():
        free = [size if isinstance(size, int) else (_LENGTH if axis else _ROWS) for axis, size in enumerate(node.shape)]
        whole = "int64" in node.type
        found[node.name] = random.integers(0, 2, free) if whole else random.random(free, dtype=np.float32)
    return found


def measure(path: Path, rounds: int) -> list[dict[str, str]]:
    """Compare the ways for one model; gives a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        extended, own = Path(folder) / "extended.onnx", Path(folder) / "own.ort"
        session(str(path), extended)
        session(str(path), own, {"session.save_model_format": "ORT"})
        data = own.read_bytes()  # must outlive every session that uses it in place
        ways: dict[str, Callable[[], Any]] = {
            "as it is": lambda: session(str(path)),
            "saved at EXTENDED": lambda: session(str(extended)),
            "onnxruntime's own format": lambda: session(str(own)),
            "the same, used in place": lambda: session(data, None, dict.fromkeys(_IN_PLACE, "1")),
        }
        creating: dict[str, list[float]] = {name: [] for name in ways}
        running: dict[str, list[float]] = {name: [] for name in ways}
        outputs: dict[str, list[np.ndarray]] = {}
        for _ in range(rounds):
            for name, create in ways.items():
                began = time.process_time()
                created = create()
                creating[name].append(time.process_time() - began)
                given = feed(created)
                outputs[name] = created.run(None, given)
                began = time.process_time()
                for _ in range(3):
                    created.run(None, given)
                running[name].append(time.process_time() - began)
                del created
    first = next(iter(ways))
    return [
        {
            "loaded": name,
            "creating it": ratio(creating[name], creating[first]),
            "one run": ratio(running[name], running[first]),
            "outputs": "the same bits" if _equal(outputs[name], outputs[first]) else "others",
        }
        for name in ways
    ]


def _equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FILE.onnx")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = []
    for text in options.models:
        name, _, path = text.partition("=")
        size = f"{Path(path).stat().st_size / 1e6:.1f} MB"
        rows += [{"model": f"{name}, {size}", **row} for row in measure(Path(path), options.rounds)]
    note = (
        f"CPU time of one thread as a multiple of loading the model as it is: median and quartiles of {options.rounds} "
        f"rounds in which the ways take turns. One row; a free length is {_LENGTH}."
    )
    names = " ".join(f"{text.partition('=')[0]}=FILE.onnx" for text in options.models)
    write(
        "creation",
        "Creating a session",
        rows,
        [note],
        f"python benchmarks/creation.py {names} --rounds {options.rounds}",
    )


if __name__ == "__main__":
    main()
