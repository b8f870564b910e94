"""What was measured: speed and memory side by side, answers against labels and another model, and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.report.charts import interval
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, rows, sequence, text
from modelpack.report.scales import scale
from modelpack.report.tables import details, figures, table

if TYPE_CHECKING:
    from modelpack.report.markup import Content, Markup
    from modelpack.report.reading import Row
    from modelpack.report.scales import Scale

_TIMES = ("min_ms", "p50_ms", "p95_ms", "p99_ms")


def bench(value: Any) -> Markup | None:
    """Draw times, ratios and memory of models side by side; None where the value tells none."""
    told = mapping(value)
    cells, weights = rows(told.get("cells")), rows(told.get("subjects"))
    if not cells:
        return None
    ratios = [mapping(cell.get("ratio")) for cell in cells]
    ends = [found for ratio in ratios for key in ("low", "high") if (found := number(ratio.get(key))) is not None]
    axis = scale([1.0, *ends], 4, 136)
    reference = text(mapping(told.get("settings")).get("reference") or "")
    times = [
        [
            text(cell.get("subject")),
            figure("batch", cell.get("batch")),
            figure("threads", cell.get("threads")),
            *(figure(name, cell.get(name)) for name in _TIMES),
            figure("rows_per_second", cell.get("rows_per_second")),
            _ratio(ratio, axis),
        ]
        for cell, ratio in zip(cells, ratios, strict=True)
    ]
    against = f"against {reference}, 95 % interval" if reference else ""
    columns = ("model", "batch", "threads", "min", "p50", "p95", "p99", "rows/s", against)
    notes = [element("p", text(note), class_="notice") for note in sequence(told.get("notes"))]
    return element("div", table(columns, times, numbers=range(1, 8)), notes, _weights(weights) if weights else None)


def _ratio(found: Row, axis: Scale) -> Content:
    low, value, high = (number(found.get(name)) for name in ("low", "value", "high"))
    if low is None or value is None or high is None:
        return None
    told = f"{figure('speedup', value)}, {text(found.get('verdict'))}"
    return [interval(low, value, high, axis, f"{low:.3g} to {high:.3g}"), f" {told}"]


def _weights(found: list[Row]) -> Markup:
    body = [
        [
            text(item.get("name")),
            text(item.get("runtime")),
            figure("size", item.get("size")),
            figure("mac_count", item.get("macs")),
            figure("load_ms", item.get("load_ms")),
            figure(
                "bytes", max((number(held) or 0.0 for held in mapping(item.get("peak_bytes")).values()), default=None)
            ),
            figure("bytes", item.get("runtime_bytes")),
        ]
        for item in found
    ]
    columns = ("model", "runtime", "size", "multiply-adds", "load", "peak memory", "of it runtime")
    return table(columns, body, numbers=range(2, 7))


def evaluation(value: Any) -> Markup | None:
    """Draw figures against labels, and outputs beside those of another model; None where the value tells none."""
    told = mapping(value)
    metrics, outputs = mapping(told.get("metrics")), mapping(told.get("outputs"))
    if not metrics and not outputs:
        return None
    compared = {name: mapping(item) for name, item in outputs.items()}
    keys = list(dict.fromkeys(key for item in compared.values() for key in item))
    body = [
        [element("code", str(name)), *(figure(key, item.get(key)) for key in keys)] for name, item in compared.items()
    ]
    made_up = element("p", "These rows were made up.", class_="notice") if told.get("synthetic") else None
    about = f"Output {text(told.get('output'))} on {figure('rows', told.get('rows'))} rows."
    beside = table(("output", *(str(key).replace("_", " ") for key in keys)), body, numbers=range(1, len(keys) + 1))
    return element("div", element("p", about), made_up, figures(metrics), beside if body and keys else None)


def checks(value: Any) -> Markup | None:
    """List what was looked for and what was found; None where the value tells none."""
    found = rows(value)
    if not found or any("verdict" not in row for row in found):
        return None
    styles = {"failed": "missed", "ok": "met"}
    body = [
        [
            text(row.get("check")),
            element("span", text(row["verdict"]), class_=styles.get(text(row["verdict"]))),
            [text(row.get("cause") or ""), f" ({text(row['where'])})" if row.get("where") else None],
            text(row.get("remedy") or ""),
        ]
        for row in found
    ]
    counts = ", ".join(
        f"{sum(text(row['verdict']) == verdict for row in found)} {verdict}"
        for verdict in dict.fromkeys(text(row["verdict"]) for row in found)
    )
    return details(
        f"{len(found)} checks for silent failures: {counts}", table(("check", "verdict", "cause", "remedy"), body)
    )
