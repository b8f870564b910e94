"""The recipe reference as Markdown, made of the same declarations that bind recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack import registry, schema
from modelpack.budget import AT_MOST, Budget
from modelpack.recipe import Head

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_KEYS = (
    ("model", "Where the model comes from: `factory`, or `onnx`. See the tables below."),
    ("data", "Named data, each `name: {source: settings}`."),
    ("budget", "Gates, checked as soon as they are measured and always before an image is built."),
    ("stages", "Steps in order, each `stage: settings`, with `id` and `from` beside it where needed."),
)


def markdown() -> str:
    """Give the reference: the top of a recipe, every stage, every data source, with all their settings."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "#### The top of a recipe"
    yield ""
    head = [(item.name, item.type, item.default, item.help) for item in schema.settings(Head)]
    rest = [(name, "mapping or list", "", text) for name, text in _KEYS]
    yield from _table(("key", "takes", "default", "meaning"), [*head, *rest])
    yield "#### `budget`"
    yield ""
    rows = [
        (item.name, "at most" if item.name in AT_MOST else "at least", item.type, item.help)
        for item in schema.settings(Budget)
    ]
    yield from _table(("line", "limit", "takes", "meaning"), rows)
    stages = [registry.stages().get(name) for name in registry.stages().names()]
    for plugin in [item for item in stages if not item.accepts]:
        key = "onnx" if "onnx" in plugin.config.model_fields else "factory"
        yield from _plugin(f"#### `model` with `{key}`", plugin)
    for plugin in [item for item in stages if item.accepts]:
        yield from _plugin(f"#### stage `{plugin.name}`", plugin)
    for name in registry.sources().names():
        yield from _plugin(f"#### data source `{name}`", registry.sources().get(name))


def _plugin(title: str, plugin: Any) -> Iterator[str]:
    yield title
    yield ""
    yield plugin.summary
    facts = [f"{key}: {', '.join(values)}" for key, values in schema.nature(plugin).items() if values]
    if facts:
        yield f"({'; '.join(facts)})"
    yield ""
    rows = [
        (item.name, item.type, "required" if item.required else item.default, item.help)
        for item in schema.settings(plugin.config)
    ]
    yield from _table(("setting", "takes", "default", "meaning"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for name, *cells in rows:
        told = [cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells]
        yield f"| `{name}` | {' | '.join(told)} |"
    yield ""
