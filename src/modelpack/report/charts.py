"""Charts as inline SVG: lines, bubbles and small bars, each with a name and its figures for those who cannot see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.report.markup import Markup, element
from modelpack.report.scales import scale

if TYPE_CHECKING:
    from modelpack.report.markup import Content
    from modelpack.report.scales import Scale

Point = tuple[float, float]
Write = Callable[[float], str]

KINDS = 5
"""Styles of lines that can be told apart; a chart with more of them repeats itself."""

_FEW, _MOST = 14, 200
"""Points of a curve that are all marked, and those that tell their figures where one points at them."""


@dataclass(frozen=True)
class Frame:
    """The size of a chart, in the units of its letters, and where its axes lie."""

    width: float
    height: float
    left: float = 48.0
    top: float = 10.0

    @property
    def right(self) -> float:
        """Where the horizontal axis ends."""
        return self.width - 8

    @property
    def bottom(self) -> float:
        """Where the vertical axis begins."""
        return self.height - 32


_SMALL, _LARGE = Frame(340, 196), Frame(600, 300)


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart show.

    Attributes:
        across: What the horizontal one counts.
        write: Writes a figure of the vertical one.
    """

    across: str
    write: Write


@dataclass(frozen=True)
class Line:
    """One curve: its name, its points from left to right, and the place of the point that stands out, if any."""

    name: str
    points: Sequence[Point]
    best: int | None = None


@dataclass(frozen=True)
class Bubble:
    """One point with a size: its label, a `kind` of the style sheet, and its whole story for a tooltip."""

    x: float
    y: float
    area: float
    label: str
    kind: str
    told: str


def lines(title: str, series: Sequence[Line], axes: Axes, *, log: bool = False) -> Markup:
    """Draw curves over one axis.

    Args:
        title: What is shown.
        series: The curves; those without points are left out.
        axes: What the axes show.
        log: Whether the vertical axis may be logarithmic.
    """
    shown = [line for line in series if line.points]
    points = [point for line in shown for point in line.points]
    x = scale((point[0] for point in points), _SMALL.left, _SMALL.right, exact=True)
    y = scale((point[1] for point in points), _SMALL.bottom, _SMALL.top, log=log)
    curves = [_curve(line, place % KINDS, (x, y), axes.write) for place, line in enumerate(shown)]
    ends = "; ".join(
        f"{line.name} from {axes.write(line.points[0][1])} to {axes.write(line.points[-1][1])}" for line in shown
    )
    drawn = _frame(f"{title}: {ends}", _SMALL, (x, y), axes, curves)
    legend = [line.name for line in shown]
    return element("figure", element("figcaption", title), drawn, _legend(legend) if len(shown) > 1 else None)


def _curve(line: Line, kind: int, scales: tuple[Scale, Scale], write: Write) -> Content:
    x, y = scales
    places = [(x(a), y(b)) for a, b in line.points]
    path = "M" + "L".join(f"{a:g} {b:g}" for a, b in places)
    return [
        element("path", d=path, class_=f"curve k{kind}") if len(places) > 1 else None,
        [
            element(
                "circle",
                element("title", f"{line.name}, {line.points[place][0]:g}: {write(line.points[place][1])}"),
                cx=f"{a:g}",
                cy=f"{b:g}",
                r=2.5 if place != line.best and len(places) <= _FEW else 5,
                class_=f"dot f{kind}" if place == line.best or len(places) <= _FEW else "spot",
            )
            for place, (a, b) in enumerate(places)
            if len(places) <= _MOST or place == line.best
        ],
    ]


def _frame(told: str, frame: Frame, scales: tuple[Scale, Scale], axes: Axes, content: Content) -> Markup:
    """Draw both axes around something."""
    x, y = scales
    grid = [
        [
            element("line", x1=frame.left, x2=frame.right, y1=y(value), y2=y(value), class_="grid"),
            element("text", axes.write(value), x=frame.left - 6, y=y(value) + 3.5, text_anchor="end"),
        ]
        for value in y.ticks
    ]
    below = [element("text", f"{value:g}", x=x(value), y=frame.bottom + 15, text_anchor="middle") for value in x.ticks]
    return element(
        "svg",
        grid,
        element("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis"),
        below,
        element("text", axes.across, x=frame.right, y=frame.bottom + 29, text_anchor="end"),
        content,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_label=told,
    )


def _legend(names: Sequence[str]) -> Markup:
    return element(
        "ul",
        [
            element(
                "li",
                element(
                    "svg",
                    element("path", d="M1 4H25", class_=f"curve k{place % KINDS}"),
                    viewBox="0 0 26 8",
                    aria_hidden="true",
                ),
                name,
            )
            for place, name in enumerate(names)
        ],
        class_="legend",
    )


def bubbles(title: str, about: str, found: Sequence[Bubble], front: Sequence[Point], axes: Axes) -> Markup:
    """Draw points with sizes, and the line that joins the best of them.

    Args:
        title: What is shown.
        about: What sizes and colours mean.
        found: The points.
        front: The points to join, in any order.
        axes: What the axes show.
    """
    x = scale([item.x for item in found], _LARGE.left + 14, _LARGE.right - 14)
    y = scale([item.y for item in found], _LARGE.bottom - 14, _LARGE.top + 14)
    most = max((item.area for item in found), default=1.0) or 1.0
    joined = "M" + "L".join(f"{x(a):g} {y(b):g}" for a, b in sorted(front))
    drawn = [
        element("path", d=joined, class_="front") if len(front) > 1 else None,
        [_bubble(item, x, y, most) for item in found],
    ]
    told = f"{title}: " + "; ".join(item.told for item in found)
    return element(
        "figure", element("figcaption", title, element("small", about)), _frame(told, _LARGE, (x, y), axes, drawn)
    )


def _bubble(item: Bubble, x: Scale, y: Scale, most: float) -> Content:
    radius = 4 + 10 * (max(item.area, 0.0) / most) ** 0.5
    return [
        element(
            "circle",
            element("title", item.told),
            cx=x(item.x),
            cy=y(item.y),
            r=round(radius, 2),
            class_=f"bubble {item.kind}",
        ),
        element("text", item.label, x=x(item.x), y=round(y(item.y) - radius - 3, 2), text_anchor="middle")
        if item.label
        else None,
    ]


def bar(share: float, told: str) -> Markup:
    """Draw how much of a whole is left, beside a figure that says it in a table."""
    part = min(max(share, 0.0), 1.0)
    return element(
        "svg",
        element("rect", width=100, height=8, rx=2, class_="track"),
        element("rect", width=round(100 * part, 1), height=8, rx=2, class_="part" if share <= 1 else "over"),
        width=100,
        height=8,
        role="img",
        aria_label=told,
    )


def interval(low: float, value: float, high: float, axis: Scale, told: str) -> Markup:
    """Draw a figure with the interval that holds it, and where 1 lies; `axis` is shared by all rows of a table."""
    return element(
        "svg",
        element("line", x1=axis(1), x2=axis(1), y1=0, y2=14, class_="axis dashed"),
        element("line", x1=axis(low), x2=axis(high), y1=7, y2=7, class_="span"),
        element("circle", cx=axis(value), cy=7, r=3.5, class_="f0"),
        width=140,
        height=14,
        role="img",
        aria_label=told,
    )


def spark(points: Sequence[Point], axis: Sequence[float], told: str) -> Markup:
    """Draw a curve in one line of a table.

    Args:
        points: From left to right.
        axis: Figures that the vertical axis shall show: the same for all curves of a table.
        told: The curve in words.
    """
    x, y = scale([point[0] for point in points], 3, 117), scale(axis, 23, 3, exact=True)
    path = "M" + "L".join(f"{x(a):g} {y(b):g}" for a, b in points)
    return element(
        "svg",
        element("line", x1=0, x2=120, y1=25, y2=25, class_="grid"),
        element("path", d=path, class_="curve k0"),
        width=120,
        height=26,
        role="img",
        aria_label=told,
    )
