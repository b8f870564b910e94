"""What commands print of one thing: an artifact, a model's layers, a comparison, a plugin, a machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelpack import quantities
from modelpack.cli import pages
from modelpack.cli.pages import SHORT, Row, metrics
from modelpack.cli.tables import facts, heading, page, table
from modelpack.quantities import MISSING, figure


def artifact(shown: Row) -> str:
    """Show one artifact: where it comes from, what was asked, what came out."""
    head = {
        "artifact": shown["id"],
        "kind": shown["kind"],
        "made by": f"{shown['stage']} (version {shown['version']}) in {shown['recipe'] or 'no recipe'}",
        "made on": f"{shown['finished']}, {shown['device']}, in {quantities.duration(shown['seconds'])}",
        "path": shown["path"],
    }
    files = [(item["name"], quantities.size(item["size"]), item["sha256"][:SHORT]) for item in shown["files"]]
    ancestors = [
        ("  " * item["depth"] + (item["stage"] or "(gone)"), item["kind"], item["recipe"], item["id"][:SHORT])
        for item in shown["lineage"]
    ]
    config = {name: written(value) for name, value in shown["config"].items()}
    return page(
        facts(head),
        table(("made from", "kind", "recipe", "artifact"), ancestors),
        heading("settings", facts(config, indent="  ")),
        metrics({shown["stage"]: shown["metrics"]}),
        table(("file", "size", "sha256"), files, right=(1,)),
        heading("warnings", "\n".join(f"  {text}" for text in shown["warnings"])),
        results(shown["results"]),
        contents(shown["contents"]),
    )


def results(found: Row) -> str:
    """Show the tables that a stage left beside its result."""
    return page(
        *(_SHAPES.get(name, lambda value, name=name: _result(name, value))(value) for name, value in found.items())
    )


def front(found: Sequence[Row]) -> str:
    """Show mixtures of float and quantized layers, each with what it keeps beyond the one before."""
    some = any(item["corrected"] for item in found)
    told = [name for name in ("sqnr_db", "cosine", "agreement", "accuracy", "accuracy_drop") if name in found[0]]
    rows = [
        (
            "chosen" if item["chosen"] else "" if item["on_front"] else "beaten",
            str(item["layers_kept"]),
            f"{figure('speedup', item['speedup'])} ({_span(item)})",
            figure("model_bytes", item["model_bytes"]),
            *(figure(name, item[name]) for name in told),
            *(["yes" if item["corrected"] else "no"] if some else []),
            ", ".join(item["added"]),
        )
        for item in found
    ]
    columns = ("", "kept in float", "against float32", "size", *told, *(["corrected"] if some else []), "added")
    return heading(
        "front: each row keeps the layers of those above it too",
        table(columns, rows, right=range(1, len(columns) - 1), indent="  "),
    )


def _span(item: Row) -> str:
    return f"{quantities.significant(item['speedup_low'])}–{quantities.significant(item['speedup_high'])}"


_SHAPES: Mapping[str, Callable[[Any], str]] = {"bench": pages.bench, "front": front}
"""Results that read better in a shape of their own, by name."""


def _result(name: str, value: Any) -> str:
    """Show any JSON value: rows as a table, names with values as a list, whatever is inside them below."""
    if _rows(value):
        keys = dict.fromkeys(key for item in value for key in item)
        columns = sorted(keys, key=lambda key: not all(isinstance(item.get(key), str) for item in value))
        cells = [[_short(_cell(key, item.get(key))) for key in columns] for item in value]
        right = [at for at, key in enumerate(columns) if any(_number(item.get(key)) for item in value)]
        return heading(name, table(columns, cells, right=right, indent="  "))
    if isinstance(value, Mapping):
        deep = {key: item for key, item in value.items() if isinstance(item, Mapping) or _rows(item)}
        flat = {key: _cell(key, item) for key, item in value.items() if key not in deep}
        return page(
            heading(name, facts(flat, indent="  ")), *(_result(f"{name}, {key}", item) for key, item in deep.items())
        )
    return facts({name: _cell(name, value)})


def _rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _short(text: str) -> str:
    """Shorten a digest as ids are shortened, so that a table of them can be read."""
    return text.removeprefix("sha256:")[:SHORT] if text.startswith("sha256:") else text


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(name: str, value: Any) -> str:
    return figure(name, value) if _number(value) else written(value)


def contents(found: Row) -> str:
    """Show what is inside a model."""
    if "tensors" in found:
        rows = [
            (item["name"], written(item["shape"]), item["dtype"], quantities.size(item["bytes"]))
            for item in found["tensors"]
        ]
        return table(("tensor", "shape", "type", "size"), rows, right=(3,))
    return onnx(found) if found else ""


def onnx(found: Row) -> str:
    """Show what is inside an ONNX file."""
    ports = [
        (side, name, written(spec["shape"]), spec["dtype"])
        for side in ("inputs", "outputs")
        for name, spec in found[side].items()
    ]
    head = {
        "opset": str(found["opset"]),
        "parameters": quantities.count(found["parameters"]),
        "precision": found["precision"],
        "multiply-adds": quantities.count(found["macs"]) + (" at least" if found["uncounted"] else ""),
        "operators": ", ".join(f"{name} {count}" for name, count in found["operators"].items()),
    }
    layers = [
        (
            item["name"],
            item["operator"],
            quantities.count(item["parameters"]),
            item["dtype"],
            figure("mac_count", item["macs"]),
        )
        for item in found["layers"]
    ]
    return page(
        facts(head),
        table(("", "name", "shape", "type"), [(row[0].removesuffix("s"), *row[1:]) for row in ports]),
        table(("layer", "operator", "parameters", "type", "multiply-adds"), layers, right=(2, 4)) if layers else "",
    )


def onnx_file(name: str, size: int, found: Row) -> str:
    """Show an ONNX file outside the store."""
    return page(facts({"file": name, "size": quantities.size(size)}), onnx(found))


def settings(shown: Row) -> str:
    """Show a plugin and its settings."""
    rows = [
        (row["name"], row["type"], "required" if row["required"] else row["default"] or MISSING, row["help"])
        for row in shown["settings"]
    ]
    nature = {name: ", ".join(value) for name, value in shown["nature"].items() if value}
    return page(
        f"{shown['name']}: {shown['summary']}",
        facts(nature, indent="  "),
        table(("setting", "takes", "default", "meaning"), rows) if rows else "no settings",
    )


def plugins(listed: Sequence[Row], more: str) -> str:
    """List plugins, with where they come from when that is not modelpack itself."""
    rows = [
        (item["name"], item["summary"] + ("" if item["from"] == "modelpack" else f" (from {item['from']})"))
        for item in listed
    ]
    return page(table((), rows), f"`{more}` explains one and its settings.")


def findings(found: Sequence[Row]) -> str:
    """Show what was found by topic."""
    topics = dict.fromkeys(item["topic"] for item in found)
    parts = []
    for topic in topics:
        rows = [
            (item["name"], item["found"] or ("-" if item["ok"] else "missing"), item["then"])
            for item in found
            if item["topic"] == topic
        ]
        parts.append(heading(topic, table((), rows, indent="  ")))
    return page(*parts)


def difference(found: Row) -> str:
    """Show two runs side by side."""
    a, b = found["a"], found["b"]
    settings = [(row["step"], row["name"], *_told_apart(row["a"], row["b"])) for row in found["settings"]]
    figures = [
        (
            row["step"],
            row["name"],
            figure(row["name"], row["a"]),
            figure(row["name"], row["b"]),
            quantities.shift(row["name"], row["a"], row["b"]),
        )
        for row in found["metrics"]
    ]
    return page(
        heading("recipe", found["recipe"].rstrip()) or "the recipes are the same",
        table(("step", "setting", a, b), settings) if settings else "the settings are the same",
        table(("step", "metric", a, b, "change"), figures, right=(2, 3, 4)) if figures else "",
    )


def _told_apart(a: Any, b: Any) -> tuple[str, str]:
    """Write two values with their digests shortened."""
    one, other = (re.sub(r"\b[0-9a-f]{64}\b", lambda found: found[0][:SHORT], written(value)) for value in (a, b))
    return one, other


def written(value: Any) -> str:
    """Write a setting's value as a recipe would."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(written(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
