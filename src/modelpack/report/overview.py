"""The head of a report: what it is about, what was gained, and whether the budget was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack import quantities
from modelpack.report.charts import bar
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, rows, sequence, text
from modelpack.report.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.report.markup import Content, Markup
    from modelpack.report.reading import Row

_SHRINKS = frozenset({"model_bytes", "parameters", "mac_count"})
_HEADLINES = (
    ("model_bytes",),
    ("speedup",),
    ("accuracy", "f1", "r2", "auroc", "spearman", "similarity", "pearson", "mae", "mse"),
    ("agreement", "spearman_pairs", "cosine"),
    ("parameters",),
)
"""What is told in large letters: of each line the first figure that there is."""


def head(subject: Row) -> Markup:
    """Say what this is about and how it ended."""
    status = text(subject.get("status") or "")
    facts = [
        f"{quantities.moment(text(subject.get('started')))} UTC" if subject.get("started") else None,
        f"took {figure('seconds', subject.get('seconds'))}" if number(subject.get("seconds")) else None,
        f"on {text(subject.get('device'))}" if subject.get("device") else None,
        *(f"--set {text(item)}" for item in sequence(subject.get("overrides"))),
    ]
    return element(
        "header",
        element("h1", text(subject.get("name"))),
        element("span", status, class_="tag" if status == "succeeded" else "tag bad") if status else None,
        [element("span", fact, class_="tag plain") for fact in facts if fact],
        element("p", text(subject.get("error")), class_="notice bad") if subject.get("error") else None,
        class_="top",
    )


def gained(subject: Row) -> Markup | None:
    """Draw figures before and after, the largest news first; None where there are none."""
    changes = rows(subject.get("changes"))
    body = [
        [
            text(row.get("label")),
            figure(_metric(row), row.get("before")),
            figure(_metric(row), row.get("after")),
            _moved(row),
        ]
        for row in changes
    ]
    told = table(("", "before", "after", ""), body, numbers=(1, 2)) if body else None
    parts = [_tiles(changes), told, _budget(rows(subject.get("budget"))), _image(mapping(subject.get("image")))]
    return element("div", parts) if any(parts) else None


def _metric(row: Row) -> str:
    return text(row.get("metric") or "")


def _moved(row: Row) -> Content:
    before, after = number(row.get("before")), number(row.get("after"))
    if before is None or after is None:
        return None
    if _metric(row) in _SHRINKS and before > 0:
        told = quantities.ratio(before, after)
        return [bar(after / before, f"{after / before:.0%} left"), f" {told}"]
    return quantities.shift(_metric(row), before, after)


def _tiles(changes: Sequence[Row]) -> Markup | None:
    by_metric = {_metric(row): row for row in changes}
    chosen = [next((by_metric[name] for name in names if name in by_metric), None) for names in _HEADLINES]
    tiles = [_tile(row) for row in chosen if row is not None]
    return element("dl", tiles, class_="tiles") if tiles else None


def _tile(row: Row) -> Markup:
    name, before, after = _metric(row), number(row.get("before")), number(row.get("after"))
    large, small = figure(name, row.get("after")), None
    if before is not None and after is not None:
        became = f"{figure(name, row['before'])} → {figure(name, row['after'])}"
        ratio, _, way = quantities.ratio(before, after).partition(" ") if name in _SHRINKS else ("", "", "")
        large, small = (ratio, f"{way}: {became}") if way else (large, _shift(name, before, after))
    return element("div", element("dt", text(row.get("label"))), element("dd", large, element("small", small)))


def _shift(name: str, before: float, after: float) -> str:
    moved = quantities.shift(name, before, after)
    return f"{moved} from {figure(name, before)}" if moved else "as before"


def _budget(found: Sequence[Row]) -> Markup | None:
    if not found:
        return None
    body = []
    for line in found:
        name, limit, met = text(line.get("name")), text(line.get("limit")), line.get("met") is True
        measured = number(line.get("measured"))
        body.append(
            [
                name.replace("_", " "),
                quantities.limit(name, limit),
                text(line.get("measured")) if measured is None else quantities.figure(name, measured, like=limit),
                element("span", "met" if met else "not met", class_="met" if met else "missed"),
                text(line.get("step")),
            ]
        )
    return table(("budget", "limit", "measured", "", "measured by"), body, numbers=(1, 2))


def _image(found: Row) -> Markup | None:
    if not found:
        return None
    told = f"{text(found.get('tag'))}, {figure('size', found.get('size'))}"
    return element("p", "Image ", element("code", text(found.get("id"))), f" ({told})")


def side_by_side(subjects: Sequence[Row]) -> Markup:
    """Compare the results of several subjects."""
    labels: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    for subject in subjects:
        found = {_metric(row): row for row in rows(subject.get("changes"))}
        labels |= {name: text(row.get("label")) for name, row in found.items() if name not in labels}
        results.append({name: row.get("after") for name, row in found.items()})
    body = [
        [label, *(figure(name, found[name]) if name in found else "" for found in results)]
        for name, label in labels.items()
    ]
    columns = ("result", *(text(subject.get("name")) for subject in subjects))
    return table(columns, body, numbers=range(1, len(columns)))
