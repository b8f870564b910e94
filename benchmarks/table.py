"""How benchmarks tell what they measured: one Markdown page and one JSON file each, with the machine's description."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS = Path(__file__).with_name("results")
LIBRARIES = ("modelpack", "torch", "onnx", "numpy")
ABILITIES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe what the figures were measured on: device, processor, cores, memory, system and library versions."""
    libraries = (*LIBRARIES, "onnxruntime" if device == "cpu" else "onnxruntime-gpu")
    fields = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **_accelerator(device),
        "processor": fields.get("model name", platform.processor()),
        "instructions": [name for name in ABILITIES if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }


def _accelerator(device: str) -> dict[str, str]:
    if device == "cpu":
        return {}
    import torch

    return {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}


def _sentence(facts: Mapping[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    gpu = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    return (
        f"{gpu}{facts['processor']} ({', '.join(facts['instructions'])}), {facts['cores']} cores, {facts['memory']}, "
        f"{facts['system']}, Python {facts['python']}; {libraries}."
    )


def write(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    command: str,
    *,
    device: str = "cpu",
) -> None:
    """Write ``results/NAME.md`` and ``results/NAME.json``, and print the page.

    Args:
        name: Name of both files; figures of a GPU get ``-cuda`` behind it.
        title: Heading of the page.
        rows: Lines of the table; the first one's keys are the columns.
        notes: Paragraphs below the table: what was compared with what, and how.
        command: The command line that repeats it.
        device: What was measured, ``cpu`` or ``cuda:N``.
    """
    facts = machine(device)
    name += "" if device == "cpu" else "-cuda"
    columns = list(rows[0])
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    for note in (*notes, f"Machine: {_sentence(facts)}", f"Repeat with `{command}`."):
        lines += ["", note]
    RESULTS.mkdir(exist_ok=True)
    page = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    body = {"title": title, "rows": list(rows), "notes": list(notes), "machine": facts, "command": command}
    (RESULTS / f"{name}.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(page)


def ratio(values: Sequence[float], reference: Sequence[float]) -> str:
    """Give the median of paired ratios with its quartiles: ``1.93x (1.90 to 1.97)``."""
    paired = [value / other for value, other in zip(values, reference, strict=True)]
    low, middle, high = statistics.quantiles(paired, n=4)
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"
