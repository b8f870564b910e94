"""How trainings went: what batch norms began with, and losses, score and learning rate by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.report.charts import Axes, Line, lines
from modelpack.report.markup import element
from modelpack.report.reading import figure, mapping, number, points, rows, text
from modelpack.report.tables import details, table, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.report.charts import Point
    from modelpack.report.markup import Markup

_ACROSS = "epoch"
_TITLES = {"score": "Score on held-out rows", "lr": "Learning rate"}
_JUDGED = "eval_"
"""Beginning of the names of further figures on held-out rows."""
_UNDRAWN = frozenset({_ACROSS, "seconds", "steps", "rows"})


def history(value: Any) -> Markup | None:
    """Draw a training by epoch: losses together, other figures each alone; None where the value is no such thing."""
    found = rows(value)
    keys = list(dict.fromkeys(str(key) for row in found for key in row))
    curves = {key: points(found, _ACROSS, key) for key in keys if key not in _UNDRAWN}
    if _ACROSS not in keys or not any(curves.values()):
        return None
    drawn = _losses({key: curve for key, curve in curves.items() if not _alone(key)})
    drawn += [_figure(key, curve) for key, curve in curves.items() if _alone(key) and _news(key, curve, curves)]
    numeric = [place for place, key in enumerate(keys) if any(number(row.get(key)) is not None for row in found)]
    body = [[figure(key, row[key]) if key in row else "" for key in keys] for row in found]
    epochs = table([words(key) for key in keys], body, numbers=numeric)
    if not drawn:
        return epochs
    return element("div", element("div", drawn, class_="charts"), details("Figures of every epoch", epochs))


def batch_norms(value: Any) -> Markup | None:
    """Say what became of the statistics of batch norms, and why; None where the value tells nothing of it."""
    told = mapping(value)
    count, statistics = number(told.get("batch_norms")), text(told.get("statistics"))
    if count is None or "statistics" not in told:
        return None
    old, new = number(told.get("error_by_old")), number(told.get("error_by_new"))
    why = ""
    if old is not None and new is not None:
        why = f"; squared error of the outputs relative to their variance: {old:.3g} by the old, {new:.3g} by new ones"
    return element("p", f"Statistics of {count:g} batch norms: {statistics}{why}.")


def _alone(key: str) -> bool:
    return key in _TITLES or key.startswith(_JUDGED)


def _news(key: str, curve: Sequence[Point], curves: Mapping[str, Sequence[Point]]) -> bool:
    """Whether a curve is worth a chart: a figure that is the score itself is not."""
    return len(curve) > 1 and (key == "score" or curve != curves.get("score"))


def _losses(curves: Mapping[str, Sequence[Point]]) -> list[Markup]:
    whole = curves.get("loss")
    # The whole of a single part would be drawn on top of it.
    shown = [
        Line(words(key), curves[key])
        for key in sorted(curves, key="loss".__ne__)
        if len(curves[key]) > 1 and (key == "loss" or curves[key] != whole)
    ]
    return [lines("Loss", shown, Axes(_ACROSS, text), log=True)] if shown else []


def _figure(key: str, curve: Sequence[Point]) -> Markup:
    name = key.removeprefix(_JUDGED)
    title = _TITLES.get(key, f"{words(name).capitalize()} on held-out rows")
    best = max(range(len(curve)), key=lambda place: curve[place][1]) if key == "score" else None
    return lines(title, [Line(words(name), curve, best)], Axes(_ACROSS, lambda value: figure(name, value)))
