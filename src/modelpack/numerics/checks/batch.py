"""Answers that depend on the batch: the same row gives another answer with other rows beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.numerics import rows, runtime
from modelpack.numerics.checks.finding import unchecked
from modelpack.numerics.checks.neighbours import judge
from modelpack.numerics.checks.subject import likeness, real, usual_power
from modelpack.numerics.measure.comparison import MOST_DECIBELS

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject
    from modelpack.numerics.rows import Feed

MOST = 4
"""Rows that are run one by one."""


def check(subject: Subject) -> Finding:
    """A row gives the same alone and with others."""
    if rows.batch_name(subject.inputs) is None:
        return unchecked("its number of rows is fixed")
    whole = max(subject.feeds, key=lambda feed: rows.count(feed, subject.inputs), default=None)
    if whole is None or rows.count(whole, subject.inputs) < 2:
        return unchecked(subject.lacks or "there are no two rows to put beside each other")
    whole = rows.take(whole, subject.inputs, MOST)
    found = _worst(subject.session, whole, subject)
    if found is None:
        return unchecked("it gives no floating-point output with one entry per row")
    usual = _worst(subject.reference_session, whole, subject) if subject.reference is not None else None
    return judge(
        subject,
        found[0],
        usual[0] if usual is not None else None,
        what=f"a row alone, and beside {rows.count(whole, subject.inputs) - 1} others",
        remedy="rows influence each other: look for statistics or ranges taken over the batch in the graph",
        where=found[1],
    )


def _worst(session: Any, whole: Feed, subject: Subject) -> tuple[float, str] | None:
    """Give the worst likeness of any row of any output, and the output."""
    size = rows.count(whole, subject.inputs)
    together = real(runtime.execute(session, whole))
    worst: tuple[float, str] | None = None
    for place in range(size):
        alone = real(runtime.execute(session, picked(whole, subject, [place])))
        for name, value in together.items():
            if value.ndim == 0 or len(value) != size or alone[name].shape != (1, *value.shape[1:]):
                continue
            alike = likeness(alone[name][0], value[place], floor=usual_power(value))
            worst = min(worst or (MOST_DECIBELS, name), (alike, name))
    return worst


def picked(whole: Feed, subject: Subject, places: list[int]) -> Feed:
    """Give some rows of a feed, along whichever dimension counts rows."""
    counted = rows.batch_name(subject.inputs)
    part: Feed = {}
    for name, value in whole.items():
        axes = [axis for axis, size in subject.inputs[name].dynamic.items() if size == counted]
        part[name] = value.take(places, axis=axes[0]) if axes else value
    return part
