"""What pruning removed, what it left alone, how much each group of layers bears, and what its channels cost in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack import quantities
from modelpack.report.charts import bar, spark
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, rows, sequence, text
from modelpack.report.tables import details, figures, table, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.report.markup import Content, Markup
    from modelpack.report.reading import Row

_LEVELS = 8
"""Shades of a heat map, in the style sheet."""

_DECIBELS = (0.0, 40.0)
"""From outputs that hold as much noise as signal to outputs whose noise nobody notices."""

_NAMES = {"accuracy": "Accuracy", "sqnr_db": "Signal to noise of the outputs"}


def layers(value: Any) -> Markup | None:
    """Draw what became of the widths of layers; None where the value tells none."""
    found = rows(value)
    widths = [(_widths(row.get("before")), _widths(row.get("after"))) for row in found]
    if not found or any(before is None or after is None for before, after in widths):
        return None
    body = []
    for row, (before, after) in zip(found, widths, strict=True):
        assert before is not None, "checked above"
        assert after is not None, "checked above"
        kept = math.prod(after) / max(math.prod(before), 1.0)
        body.append(
            [
                element("code", text(row.get("layer"))),
                text(row.get("type")),
                *(_became(old, new) for old, new in zip(before, after, strict=True)),
                [bar(kept, f"{kept:.0%} of in times out"), f" {quantities.percent(kept)}"],
            ]
        )
    return table(("layer", "type", "in", "out", "in × out kept"), body, numbers=(2, 3))


def named(value: Any) -> Markup | None:
    """List layers or blocks with whatever is told of each; None where the value names none."""
    found = rows(value)
    key = next((key for key in ("layer", "block") if found and all(key in row for row in found)), None)
    if key is None:
        return None
    others = [name for name in dict.fromkeys(name for row in found for name in row) if name != key]
    numeric = [at for at, name in enumerate(others, 1) if any(number(row.get(name)) is not None for row in found)]
    body = [[element("code", text(row[key])), *(figure(name, row.get(name)) for name in others)] for row in found]
    return table([key, *map(words, others)], body, numbers=numeric)


def _widths(value: Any) -> tuple[float, float] | None:
    found = [number(item) for item in sequence(value)]
    if len(found) != 2 or found[0] is None or found[1] is None or min(found[0], found[1]) < 0:
        return None
    return found[0], found[1]


def _became(before: float, after: float) -> str:
    return f"{before:g}" if before == after else f"{before:g} → {after:g}"


def left_alone(value: Any) -> Markup | None:
    """List the layers that stayed as they were by the reason; None where the value tells none."""
    return _reasons(value, "left alone because")


def fitted(value: Any) -> Markup | None:
    """List the layers that were fitted to what they gave before; None where the value names none."""
    names = [text(name) for name in sequence(value)]
    told = "By least squares, to what they gave with all their inputs: "
    return element("p", told, [_codes(names)]) if names else None


def unfitted(value: Any) -> Markup | None:
    """List the layers that lost inputs and were not fitted by the reason; None where the value tells none."""
    return _reasons(value, "not fitted because")


def _reasons(value: Any, because: str) -> Markup | None:
    by_reason: dict[str, list[str]] = {}
    for layer, reason in mapping(value).items():
        by_reason.setdefault(text(reason), []).append(str(layer))
    if not by_reason:
        return None
    body = [[reason, [_codes(names)]] for reason, names in by_reason.items()]
    return table((because, "layers"), body)


def _codes(names: Sequence[str]) -> Markup:
    return element("span", [[", " if place else None, element("code", name)] for place, name in enumerate(names)])


@dataclass(frozen=True)
class _Heat:
    """The range of a measure, higher being better, and how its figures are written and shaded."""

    measure: str
    worst: float
    best: float

    def harm(self, value: float) -> float:
        """Give 0 for the best and 1 for the worst, and for what lies beyond."""
        return min(max((self.best - value) / (self.best - self.worst or 1.0), 0.0), 1.0)

    def cell(self, value: float | None) -> Content:
        if value is None:
            return "–"
        level = round((_LEVELS - 1) * self.harm(value))
        return element("span", figure(self.measure, value), class_=f"heat h{level}")

    def curve(self, points: Sequence[tuple[float, float]]) -> Content:
        told = ", ".join(f"{share:.0%}: {figure(self.measure, value)}" for share, value in points)
        return spark(points, [self.worst, self.best], told) if len(points) > 1 else None


def sensitivity(value: Any) -> Markup | None:
    """Draw what each group of layers bears when it alone is pruned; None where the value tells nothing of it."""
    told = mapping(value)
    measure, whole = text(told.get("measure")), number(told.get("whole"))
    shares = [share for item in sequence(told.get("ratios")) if (share := number(item)) is not None]
    found = [(row, [number(item) for item in sequence(row.get("values"))]) for row in rows(told.get("groups"))]
    known = [item for _, values in found for item in values if item is not None]
    if not known or any(len(values) != len(shares) for _, values in found):
        return None
    best = max([*known, *([whole] if whole is not None else [])])
    heat = _Heat(measure, *_DECIBELS) if measure == "sqnr_db" else _Heat(measure, min(known), best)
    found.sort(key=lambda pair: sum(heat.harm(item) for item in pair[1] if item is not None), reverse=True)
    body = [
        [
            element("code", text(row.get("group"))),
            figure("units", row.get("units")),
            heat.curve([(share, item) for share, item in zip(shares, values, strict=True) if item is not None]),
            *(heat.cell(item) for item in values),
        ]
        for row, values in found
    ]
    head = ("group of", "units", "", *(f"{share:.0%} removed" for share in shares))
    unpruned = f"; unpruned: {figure(measure, whole)}" if whole is not None else ""
    caption = (
        f"{_NAMES.get(measure, measure)} with one group pruned alone, the most sensitive first; "
        f"{figure('rows', told.get('rows'))} rows{unpruned}"
    )
    return table(head, body, numbers=(1, *range(3, 3 + len(shares))), caption=caption)


def latency(value: Any) -> Markup | None:
    """Draw how a time was met: what was tried, and what a unit of each group costs; None where it tells nothing."""
    told = mapping(value)
    trials, costs = rows(told.get("trials")), rows(told.get("costs"))
    if not trials and not costs:
        return None
    facts = {f"time {name}": _share(told[name]) for name in ("asked", "measured") if name in told}
    facts |= {
        label: figure(name, told[name])
        for name, label in (("original_ms", "unpruned"), ("exports", "exports"), ("seconds", "took"))
        if name in told
    }
    return element(
        "div",
        figures(facts) if facts else None,
        _trials(trials) if trials else None,
        _costs(costs) if costs else None,
    )


def schedule(value: Any) -> Markup | None:
    """List the steps in which a model was pruned, and what stayed after each; None where the value tells none."""
    found = rows(value)
    if not found or any(number(row.get("kept")) is None for row in found):
        return None
    shares = {"wanted": "to keep", "kept": "kept"}
    others = [key for key in dict.fromkeys(key for row in found for key in row) if key not in {"step", *shares}]
    body = [
        [
            figure("step", row.get("step")),
            *(_share(row.get(key)) for key in shares),
            *(figure(key, row.get(key)) for key in others),
        ]
        for row in found
    ]
    columns = ("step", *shares.values(), *map(words, others))
    return table(columns, body, numbers=range(len(columns)))


def _trials(found: Sequence[Row]) -> Markup:
    """List what was measured, beside the multiply-accumulates that promised it."""
    body = [[str(place + 1), _share(row.get("macs")), _share(row.get("measured"))] for place, row in enumerate(found)]
    return details("Models measured", table(("trial", "multiply-adds kept", "time kept"), body, numbers=(1, 2)))


def _costs(found: Sequence[Row]) -> Markup:
    shares = [number(row.get("share")) or 0.0 for row in found]
    most = max([*shares, 0.0]) or 1.0
    body = [
        [
            element("code", text(row.get("group"))),
            figure("units", row.get("units")),
            figure("unit_ms", row.get("unit_ms")),
            [bar(share / most, _share(share)), f" {_share(share)}"],
        ]
        for share, row in sorted(zip(shares, found, strict=True), key=lambda pair: -pair[0])
    ]
    columns = ("group of", "units", "time of a unit", "part in the time")
    return details("What a unit of each group costs", table(columns, body, numbers=(1, 2)))


def _share(value: Any) -> str:
    found = number(value)
    return text(value) if found is None else quantities.percent(found)
