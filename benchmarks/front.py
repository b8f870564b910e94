"""What a budget of quality costs: the mixtures of float and quantized layers that EfficientNet-Lite0 is offered.

Usage: ``python benchmarks/front.py``, after what ``recipes/lite0-int8.yaml`` asks for.

A recipe asks for a signal-to-noise ratio, once of plain rounding and once with every layer corrected; the table is the
front that the stage records.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import yaml
from table import write

from modelpack import engine, recipe
from modelpack.store import Store

LITE0 = Path(__file__).resolve().parents[1] / "recipes" / "lite0-int8.yaml"
WAYS = {
    "plain": {"budget": {"sqnr_db": 22}},
    "corrected": {"budget": {"sqnr_db": 27}, "correction": "rounding"},
}
"""Name → settings of the stage."""


def body() -> str:
    """Write the recipe: the model and data of another one, quantized under each budget. JSON is YAML."""
    known = yaml.safe_load(LITE0.read_text(encoding="utf-8"))
    steps = [
        {"quantize": {"method": "static", "data": "calibration", **more}, "id": name, "from": "export"}
        for name, more in WAYS.items()
    ]
    stages = [{"export": {"data": "calibration"}}, *steps]
    return json.dumps({"name": "front", "model": known["model"], "data": known["data"], "stages": stages})


def lines(store: Store, artifact: str, name: str) -> list[dict[str, Any]]:
    """Give the rows of the table for one budget."""
    front = store.get(artifact).manifest.record["results"]["front"]
    asked = WAYS[name]["budget"]["sqnr_db"]
    return [
        {
            "budget": f"{asked} dB{', `correction: rounding`' if 'correction' in WAYS[name] else ''}",
            "float layers": point["layers_kept"],
            "corrected": "yes" if point["corrected"] else "",
            "SQNR": f"{point['sqnr_db']:.1f} dB",
            "size": f"{point['model_bytes'] / 1e6:.2f} MB",
            "speed": f"{point['speedup']:.2f}x",
            "": "chosen" if point["chosen"] else "" if point["on_front"] else "beaten",
        }
        for point in front
    ]


def main() -> None:
    """Run the recipe, and write its fronts."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        store.prepare()
        desk = engine.open_desk(recipe.parse(body(), LITE0.with_name("front.yaml")), store, "cpu")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        run = engine.run(desk, lambda _event: None)
        after, wall = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        rows = [line for name in WAYS for line in lines(store, run.step(name).artifact, name)]
        took = {name: run.step(name).seconds for name in WAYS}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note = (
        "Each row is a file that was written and measured, on the 216 calibration photos; speed relative to fp32 on "
        "one thread, all mixtures taking turns. Beaten: another is as good in less time. Choosing took "
        f"{took['plain']:.0f} s without and {took['corrected']:.0f} s with the correction; the whole recipe, export "
        f"and calibration included, {wall / 60:.1f} min on the clock and {cpu:.0f} CPU s."
    )
    write("front", "Mixtures of EfficientNet-Lite0 under a budget", rows, [note], "python benchmarks/front.py")


if __name__ == "__main__":
    main()
