"""Tables, lists of facts, and values of any shape as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.report.markup import Markup, element
from modelpack.report.reading import figure, mapping, number, rows, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.report.markup import Content
    from modelpack.report.reading import Row

_MOST_ROWS = 400
"""Rows of a table that are written out; a page must stay one that a browser opens."""


def table(
    columns: Sequence[str], body: Sequence[Sequence[Content]], *, numbers: Sequence[int] = (), caption: str = ""
) -> Markup:
    """Write a table whose first column names the rows.

    Args:
        columns: Headings.
        body: Cells by row.
        numbers: Places of the columns that hold figures.
        caption: What the table shows; nothing when the heading above says it.
    """

    def style(place: int) -> str | None:
        return "number" if place in numbers else None

    head = element("tr", [element("th", name, scope="col", class_=style(place)) for place, name in enumerate(columns)])
    lines = [
        element(
            "tr",
            [
                element("td" if place else "th", cell, scope=None if place else "row", class_=style(place))
                for place, cell in enumerate(row)
            ],
        )
        for row in body[:_MOST_ROWS]
    ]
    more = len(body) - _MOST_ROWS
    drawn = element(
        "table", element("caption", caption) if caption else None, element("thead", head), element("tbody", lines)
    )
    left_out = element("p", f"and {more} more rows, in report.json", class_="quiet") if more > 0 else None
    return element("div", drawn, left_out, class_="wide", tabindex="0", role="region", aria_label=caption or "table")


def figures(found: Row) -> Markup:
    """Write names with figures as a compact list."""
    items = [
        element("div", element("dt", words(name)), element("dd", figure(name, value))) for name, value in found.items()
    ]
    return element("dl", items, class_="figures")


def details(summary: str, *content: Content) -> Markup:
    """Fold something away under a line that says what it is; paper shows it unfolded."""
    return element("details", element("summary", summary), *content)


def anything(name: str, value: Any) -> Markup:
    """Write any value: rows as a table, names with values as a list, whatever is inside them below.

    It is for what no other drawing knows, such as the tables of stages from elsewhere.
    """
    found = rows(value)
    if found:
        keys = list(dict.fromkeys(key for row in found for key in row))
        numeric = [place for place, key in enumerate(keys) if any(number(row.get(key)) is not None for row in found)]
        body = [[figure(key, row.get(key)) if key in row else "" for key in keys] for row in found]
        return element("div", element("h4", words(name)), table([words(key) for key in keys], body, numbers=numeric))
    told = mapping(value)
    return element("div", element("h4", words(name)), figures(told) if told else element("p", text(value)))


def words(key: Any) -> str:
    """Give a key as people write it."""
    return str(key).replace("_", " ")
