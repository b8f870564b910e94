"""The whole page: chapters about each subject, in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.report import measurements, overview, pruning, quantization, steps, training, weights
from modelpack.report.markup import Markup, element, join
from modelpack.report.reading import Row, mapping, rows, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelpack.report.markup import Content

_CHAPTERS = ("Pruning", "Training", "Quantization", "Quality", "Speed")

_DRAWINGS: Mapping[str, tuple[tuple[str, str, Callable[[Any], Markup | None]], ...]] = {
    "sparsity": (("Pruning", "zeros", weights.sparsity),),
    "layers": (
        ("Pruning", "layers", pruning.layers),
        ("Pruning", "layers", weights.halves),
        ("Pruning", "layers", weights.zeros),
        ("Pruning", "layers", weights.clipped),
        ("Quantization", "layers", quantization.layers),
        ("Pruning", "layers", pruning.named),
    ),
    "schedule": (("Pruning", "steps", pruning.schedule),),
    "blocks": (("Pruning", "blocks", pruning.named),),
    "left_alone": (("Pruning", "left alone", pruning.left_alone),),
    "refitted": (("Pruning", "fitted", pruning.fitted),),
    "unfitted": (("Pruning", "not fitted", pruning.unfitted),),
    "sensitivity": (("Pruning", "sensitivity", pruning.sensitivity),),
    "latency": (("Pruning", "latency", pruning.latency),),
    "batch_norms": (("Training", "batch norms", training.batch_norms),),
    "history": (("Training", "", training.history),),
    "front": (("Quantization", "front", quantization.front),),
    "fidelity": (("Quantization", "closeness to the float model", quantization.fidelity),),
    "checks": (("Quality", "checks", measurements.checks),),
    "evaluation": (("Quality", "", measurements.evaluation),),
    "bench": (("Speed", "", measurements.bench),),
}
"""How results of these names are drawn, in this order: chapter, title, and a drawing that gives None for a shape that
it does not know."""


def render(document: Mapping[str, Any]) -> str:
    """Write the page of a report.

    Args:
        document: The content of ``report.json``, as `json.loads` gives it.

    Returns:
        HTML that needs no network and no script. Whatever a drawing does not know is shown as a plain table.
    """
    subjects = rows(document.get("subjects"))
    names = ", ".join(text(subject.get("name")) for subject in subjects) or "nothing"
    articles = [_article(subject, f"s{place}") for place, subject in enumerate(subjects)]
    several = element("section", element("h2", "Side by side"), overview.side_by_side(subjects))
    body = element(
        "body",
        element("a", "To the content", href="#content", class_="skip"),
        element(
            "main",
            several if len(subjects) > 1 else None,
            articles,
            element("footer", f"Made by modelpack {text(document.get('modelpack'))}"),
            id="content",
        ),
    )
    return "<!doctype html>\n" + element("html", _head(f"{names} · modelpack report"), body, lang="en") + "\n"


def _head(title: str) -> Markup:
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width"),
        element("title", title),
        element("style", style),
    )


@cache
def _style() -> Markup:
    return Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))


def _article(subject: Row, anchor: str) -> Markup:
    chapters, drawn = _drawings(subject)
    parts: dict[str, Content] = {
        "What was gained": overview.gained(subject),
        **{name: chapters[name] for name in _CHAPTERS if name in chapters},
        "Steps": steps.steps(subject, drawn),
        "Environment": steps.surroundings(subject),
        "Recipe": steps.recipe(subject),
    }
    told = {name: part for name, part in parts.items() if part}
    places = {name: f"{anchor}-{name.lower().replace(' ', '-')}" for name in told}
    links = [element("li", element("a", name, href=f"#{place}")) for name, place in places.items()]
    sections = [element("section", element("h2", name), part, id=places[name]) for name, part in told.items()]
    contents = element("nav", element("ul", links), aria_label=f"Chapters of {text(subject.get('name'))}")
    return element("article", overview.head(subject), contents, sections, id=anchor)


def _drawings(subject: Row) -> tuple[dict[str, list[Markup]], dict[int, frozenset[str]]]:
    """Draw the results that drawings know, by chapter; and name them by the number of their step."""
    chapters: dict[str, list[Markup]] = {}
    drawn: dict[int, frozenset[str]] = {}
    for place, step in enumerate(rows(subject.get("steps"))):
        results = mapping(step.get("results"))
        for name in (name for name in _DRAWINGS if name in results):
            for chapter, title, draw in _DRAWINGS[name]:
                picture = draw(results[name])
                if picture is not None:
                    heading = ": ".join(filter(None, (text(step.get("id")), title)))
                    chapters.setdefault(chapter, []).append(join([element("h3", heading), picture]))
                    drawn[place] = drawn.get(place, frozenset()) | {name}
                    break
    return chapters, drawn
