"""What each step of ``recipes/fashion-small.yaml`` gains, and whether the next one keeps it.

Usage: ``python benchmarks/composition.py [--store DIRECTORY]``, after what the recipe says that it needs.

In a store where the recipe was run before, only what changed since is run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from table import write

ROOT = Path(__file__).resolve().parents[1]
NAME = "fashion-small"
ROWS = (
    ("as it was", "original", "", ""),
    ("without three blocks, narrower, taught", "float", "float_accuracy", "float_speed"),
    ("and trained to be rounded to 8 bits", "export", "evaluate", "bench"),
)
"""What a line is called, and the steps that export, judge and time it."""


def figures(store: str) -> dict[str, dict[str, Any]]:
    """Run the recipe, and give every step's figures by its id."""
    base = [sys.executable, "-m", "modelpack"]
    subprocess.run([*base, "compress", f"recipes/{NAME}.yaml", "--store", store], check=True, cwd=ROOT)
    shown = subprocess.run(
        [*base, "show", NAME, "--json", "--store", store], check=True, cwd=ROOT, capture_output=True
    ).stdout
    return {step["id"]: step["metrics"] for step in json.loads(shown)["steps"]}


def line(found: dict[str, dict[str, Any]], way: str, file: str, judged: str, timed: str) -> dict[str, str]:
    """Write one line of the table."""
    whole, size = found["original"]["model_bytes"], found[file]["model_bytes"]
    accuracy = found[judged]["accuracy"] if judged else found["evaluate"]["accuracy_reference"]
    speed = found[timed]["speedup"] if timed else 1.0
    return {
        "network": way,
        "accuracy": f"{accuracy:.4f}",
        "lost": f"{100 * found[judged]['accuracy_drop']:.2f} points" if judged else "",
        "file": f"{size / 1e3:.0f} kB ({whole / size:.1f}x smaller)",
        "speed": f"{speed:.2f}x",
    }


def main() -> None:
    """Run the recipe, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="where to keep what was done; nowhere when absent")
    with tempfile.TemporaryDirectory() as scratch:
        found = figures(parser.parse_args().store or scratch)
    kept = found["narrow"]["mac_count"] / found["model"]["mac_count"]
    note = (
        f"A ResNet on Fashion-MNIST; {kept:.0%} of its multiply-accumulates stay. Accuracy on the 10,000 test images, "
        "on which nothing was chosen; one standard error is 0.26 points. Speed in onnxruntime, one row on one thread, "
        "against the first line's file, in turns."
    )
    table = [line(found, *row) for row in ROWS]
    write("composition", "One step after the other", table, [note], "python benchmarks/composition.py")


if __name__ == "__main__":
    main()
