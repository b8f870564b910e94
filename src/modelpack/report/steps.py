"""The steps of a run: what each was asked for, what it measured, and what it warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack import quantities
from modelpack.report.markup import element
from modelpack.report.reading import Row, figure, mapping, number, rows, sequence, text
from modelpack.report.tables import anything, details, figures, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.report.markup import Markup

_OPEN = "came_to"
"""The result that says what settings came to which were left open."""

_ID = 12
"""Digits of an id that are shown."""


def steps(subject: Row, drawn: Mapping[int, frozenset[str]]) -> Markup | None:
    """List the steps; None where there are none.

    Args:
        subject: Of the report.
        drawn: By the number of a step, those of its results that are drawn in another chapter.
    """
    found = rows(subject.get("steps"))
    listed = [_step(step, drawn.get(place, frozenset())) for place, step in enumerate(found)]
    return element("ol", listed, class_="steps") if listed else None


def _step(step: Row, drawn: frozenset[str]) -> Markup:
    identity, stage = text(step.get("id")), text(step.get("stage"))
    facts = [
        stage if stage != identity else None,
        text(step.get("kind")),
        f"took {figure('seconds', step.get('seconds'))}" if number(step.get("seconds")) is not None else None,
        "taken from the store" if step.get("cached") is True else None,
    ]
    results = {name: value for name, value in mapping(step.get("results")).items() if name not in {*drawn, _OPEN}}
    config, came_to = mapping(step.get("config")), mapping(mapping(step.get("results")).get(_OPEN))
    return element(
        "li",
        element("h3", identity),
        element("span", " · ".join(fact for fact in facts if fact), class_="quiet"),
        " ",
        element("code", text(step.get("artifact"))[:_ID], class_="quiet"),
        _gone() if step.get("gone") is True else None,
        figures(mapping(step.get("metrics"))),
        [element("p", text(warning), class_="notice") for warning in sequence(step.get("warnings"))],
        details("Settings", _settings(config, came_to)) if config else None,
        details("Tables", [anything(str(name), value) for name, value in results.items()]) if results else None,
    )


def _gone() -> Markup:
    return element("p", "Its artifact is no longer in the store: settings and tables went with it.", class_="notice")


def _settings(config: Row, came_to: Row) -> Markup:
    """List settings, and for those that were left open what they came to."""
    body = [[element("code", str(name)), _value(value)] for name, value in config.items()]
    if not came_to:
        return table(("setting", "value"), body)
    made = [
        [*cells, _value(came_to[name]) if name in came_to else ""] for name, cells in zip(config, body, strict=True)
    ]
    return table(("setting", "value", "came to"), made)


def _value(value: Any) -> str:
    return text(value) if number(value) is None or isinstance(value, float) else str(value)


def surroundings(subject: Row) -> Markup | None:
    """List the machine and the versions; None where they are not known."""
    known = {str(name): value for name, value in mapping(subject.get("environment")).items() if value not in (None, "")}
    if not known:
        return None
    return table(("", ""), [[name.replace("_", " "), text(value)] for name, value in known.items()])


def recipe(subject: Row) -> Markup | None:
    """Give the recipe word for word; None where it is not known."""
    written = subject.get("text")
    if not isinstance(written, str) or not written.strip():
        return None
    lines = quantities.count(len(written.splitlines()))
    return details(f"{lines} lines, word for word", element("pre", written))
