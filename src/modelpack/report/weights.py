"""What became of the weights of layers that stayed: zeros, two halves for a whole, outliers cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack import quantities
from modelpack.report.charts import bar
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, rows, text
from modelpack.report.tables import table

if TYPE_CHECKING:
    from modelpack.report.markup import Content, Markup
    from modelpack.report.reading import Row


def sparsity(value: Any) -> Markup | None:
    """Say how much is zero and what that is good for; None where the value tells nothing of it."""
    told = mapping(value)
    if number(told.get("zeros")) is None or not told.get("told"):
        return None
    return element("p", text(told["told"]), class_="notice")


def zeros(value: Any) -> Markup | None:
    """List how many weights of each layer are zero; None where the value tells nothing of it."""
    found = _with(value, "zeros", "weights")
    body = [
        [
            _layer(row),
            *(figure("count", row[name]) for name in ("weights", "zeros")),
            _part(row["zeros"], row["weights"]),
        ]
        for row in found
    ]
    return table(("layer", "weights", "zeros", "part that is zero"), body, numbers=(1, 2)) if found else None


def halves(value: Any) -> Markup | None:
    """List the layers that were split, with the work that is left; None where the value tells of no split."""
    found = _with(value, "rank", "full", "energy", "before", "after")
    body = [
        [
            _layer(row),
            text(row.get("type")),
            text(row.get("form")),
            f"{figure('channels', row['rank'])} of {figure('channels', row['full'])}",
            quantities.percent(float(row["energy"])),
            _part(row["after"], row["before"]),
        ]
        for row in found
    ]
    columns = ("layer", "type", "split by", "channels between", "energy kept", "multiply-adds kept")
    return table(columns, body, numbers=(3, 4)) if found else None


def clipped(value: Any) -> Markup | None:
    """List how many weights were cut, and how much noise rounding then makes; None where the value tells of no cut."""
    found = _with(value, "clipped", "sqnr_db_before", "sqnr_db_after")
    body = [
        [
            _layer(row),
            figure("count", row["clipped"]),
            *(figure("sqnr_db", row[name]) for name in ("sqnr_db_before", "sqnr_db_after")),
        ]
        for row in found
    ]
    return (
        table(("layer", "weights cut", "signal to noise before", "after"), body, numbers=(1, 2, 3)) if found else None
    )


def _with(value: Any, *names: str) -> list[Row]:
    """Give the rows of layers if each of them has figures of these names."""
    found = rows(value)
    return (
        found
        if all("layer" in row and all(number(row.get(name)) is not None for name in names) for row in found)
        else []
    )


def _layer(row: Row) -> Markup:
    return element("code", text(row["layer"]))


def _part(some: float, whole: float) -> Content:
    share = float(some) / float(whole) if whole else 0.0
    told = quantities.percent(share)
    return [bar(share, told), f" {told}"]
