"""Run recipes in empty stores, as a user would, and tell what became smaller and faster and at what cost.

Usage: ``python benchmarks/recipes.py [quickstart lite0-int8 ...] [--set stages.build.base=...]``

Each recipe says at its top what it needs first. A recipe keeps its line in the table until it is run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from table import RESULTS, write

ROOT = Path(__file__).resolve().parents[1]
EVERY = (
    "quickstart",
    "lite0-int8",
    "lite0-recover",
    "fashion-prune-distill",
    "fashion-small",
    "minilm-int8",
    "minilm-thin",
)


def steps(name: str, assignments: list[str]) -> tuple[dict[str, dict[str, Any]], float]:
    """Run a recipe from nothing; give its steps' figures by id, and the CPU minutes it took."""
    settings = [part for assignment in assignments for part in ("--set", assignment)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "modelpack", "compress", f"recipes/{name}.yaml", "--store", store, *settings]
        subprocess.run(command, check=True, cwd=ROOT)
        show = [sys.executable, "-m", "modelpack", "show", name, "--json", "--store", store]
        text = subprocess.run(show, check=True, cwd=ROOT, capture_output=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {step["id"]: step["metrics"] for step in json.loads(text)["steps"]}, seconds / 60


def row(name: str, assignments: list[str]) -> dict[str, str]:
    """Run a recipe and write its line of the table."""
    found, minutes = steps(name, assignments)
    quality, before = found["evaluate"], found["model"]["model_bytes"]
    after = found["quantize" if "quantize" in found else "export"]["model_bytes"]
    counts = [item["mac_count"] for item in found.values() if "mac_count" in item]
    accuracy = quality.get("accuracy")
    return {
        "recipe": name,
        "accuracy": f"{accuracy + quality['accuracy_drop']:.4f} → {accuracy:.4f}" if accuracy is not None else "",
        "like the original": _likeness(quality),
        "MACs kept": f"{counts[-1] / counts[0]:.0%}" if len(counts) > 1 else "",
        "size": f"{before / 1e6:.2f} → {after / 1e6:.2f} MB ({before / after:.1f}x smaller)",
        "speed": f"{found['bench']['speedup']:.2f}x",
        "image": f"{found['build']['image_size'] / 1e6:.0f} MB" if "build" in found else "",
        "CPU time": f"{minutes:.1f} min",
    }


def _likeness(quality: dict[str, Any]) -> str:
    if "agreement" in quality:
        return f"{quality['agreement']:.1%} same answers"
    return f"cosine {quality['cosine']:.4f}"


def main() -> None:
    """Run what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recipes", nargs="*", default=EVERY, metavar="RECIPE", help=f"of {', '.join(EVERY)}; all if none"
    )
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="KEY=VALUE")
    options = parser.parse_args()
    kept = RESULTS / "recipes.json"
    rows = {line["recipe"]: line for line in json.loads(kept.read_text("utf-8"))["rows"]} if kept.exists() else {}
    note = (
        "Accuracy before and after, on rows that neither training nor calibration saw. Size of the original weights "
        "and of the final `model.onnx`. Speed against the original network's fp32 export, on one thread, one row at a "
        "time. CPU time of the whole recipe in an empty store."
    )
    for name in options.recipes:
        rows[name] = row(name, options.assignments)
        ordered = [rows[known] for known in EVERY if known in rows]
        write("recipes", "The recipes", ordered, [note], "python benchmarks/recipes.py")


if __name__ == "__main__":
    main()
