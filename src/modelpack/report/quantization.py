"""What quantization did to each layer, and the mixtures of float and quantized layers that it chose from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.report.charts import Axes, Bubble, bubbles
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, points, rows, sequence, text
from modelpack.report.tables import details, table, words

if TYPE_CHECKING:
    from modelpack.report.markup import Markup
    from modelpack.report.reading import Row

_QUALITY = ("sqnr_db", "cosine", "agreement", "accuracy", "accuracy_drop")


def layers(value: Any) -> Markup | None:
    """List layers with what became of them; None where the value tells none."""
    found = rows(value)
    if not found or any("quantized" not in row for row in found):
        return None
    done = sum(row["quantized"] is True for row in found)
    body = [
        [
            element("code", text(row.get("layer"))),
            text(row.get("operator")),
            figure("count", row.get("weights")),
            "quantized"
            if row["quantized"] is True
            else ["left in float", f": {text(row['reason'])}" * bool(row.get("reason"))],
        ]
        for row in found
    ]
    drawn = table(("layer", "operator", "weights", "outcome"), body, numbers=(2,))
    return element("div", element("p", f"{done} of {len(found)} layers are quantized."), drawn)


def front(value: Any) -> Markup | None:
    """Draw mixtures by speed, quality and bytes; None where the value tells none."""
    found = [row for row in rows(value) if points([row], "speedup", "sqnr_db")]
    if not found:
        return None
    told = [name for name in _QUALITY if any(number(row.get(name)) is not None for row in found)]
    drawn = bubbles(
        "Speed and closeness to the float model",
        "Area: bytes. Filled: the one chosen. Numbers: layers kept in float. Dashed: what no other beats.",
        [_bubble(row) for row in found],
        points([row for row in found if row.get("on_front") is True], "speedup", "sqnr_db"),
        Axes("times as fast as float32", lambda decibels: figure("sqnr_db", decibels)),
    )
    body = [
        [
            figure("layers", row.get("layers_kept")),
            "chosen" if row.get("chosen") is True else "" if row.get("on_front") is True else "beaten",
            figure("speedup", row.get("speedup")),
            figure("model_bytes", row.get("model_bytes")),
            *(figure(name, row.get(name)) for name in told),
            ", ".join(text(name) for name in sequence(row.get("added"))),
        ]
        for row in found
    ]
    columns = ("kept in float", "", "against float32", "size", *map(words, told), "layers added")
    figures = table(columns, body, numbers=(0, *range(2, len(columns) - 1)))
    return element("div", element("div", drawn, class_="charts one"), details("Figures of every mixture", figures))


def _bubble(row: Row) -> Bubble:
    ((speed, quality),) = points([row], "speedup", "sqnr_db")
    kept, size = figure("layers", row.get("layers_kept")), number(row.get("model_bytes")) or 0.0
    kind = "chosen" if row.get("chosen") is True else "" if row.get("on_front") is True else "beaten"
    told = (
        f"{kept} layers in float{', chosen' * (kind == 'chosen')}: {figure('speedup', speed)}, "
        f"{figure('sqnr_db', quality)}, {figure('model_bytes', row.get('model_bytes'))}"
    )
    return Bubble(speed, quality, size, "" if kind == "beaten" else kept, kind, told)


def fidelity(value: Any) -> Markup | None:
    """Compare each output with that of the float model; None where the value tells nothing of it."""
    found = {name: mapping(item) for name, item in mapping(value).items()}
    if not found or not all(found.values()):
        return None
    keys = list(dict.fromkeys(key for item in found.values() for key in item))
    body = [[element("code", str(name)), *(figure(key, item.get(key)) for key in keys)] for name, item in found.items()]
    return table(("output", *map(words, keys)), body, numbers=range(1, len(keys) + 1))
