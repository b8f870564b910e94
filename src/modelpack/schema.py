"""The recipe's grammar as data: JSON Schema for editors, and each plugin's settings in words."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelpack import registry
from modelpack.bind import InputPath, UserCode
from modelpack.budget import Budget
from modelpack.data import Source
from modelpack.recipe import Head
from modelpack.stage import DataName
from modelpack.steps import marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from modelpack.stage import Stage

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that editors' YAML servers know best."""

_REFERENCE = "#/definitions/{model}"
_SIBLINGS = {
    "id": {"type": "string", "description": "What other steps call this one; the stage's name when absent."},
    "from": {"type": "string", "description": "The step whose model this one reads; the newest model when absent."},
}
_BOUNDS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))


@dataclass(frozen=True)
class Setting:
    """One setting of a plugin, in words.

    Attributes:
        name: Its key.
        type: What it takes.
        default: What it is when absent; empty when there is no one value.
        required: Whether it must be given.
        help: What it means.
    """

    name: str
    type: str
    default: str
    required: bool
    help: str

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return asdict(self)


def document() -> dict[str, Any]:
    """Give the JSON Schema of a recipe with every installed plugin.

    It accepts what `recipe.load` accepts as far as a schema can say it: names of steps and data, and what steps mean
    to each other, it cannot.

    Raises:
        MissingError: When a plugin cannot be imported.
    """
    definitions: dict[str, Any] = {}
    stages = registry.stages()
    plugins = [stages.get(name) for name in stages.names()]
    steps = {item.name: item for item in plugins if item.accepts}
    models = [_settings(item.config, definitions) for item in plugins if not item.accepts]
    sources = registry.sources()
    entries = {name: _settings(sources.get(name).config, definitions) for name in sources.names()}
    head = _settings(Head, definitions)["properties"]
    step_settings = {
        name: {**_optional(_settings(item.config, definitions)), "description": item.summary}
        for name, item in steps.items()
    }
    return {
        "$schema": DRAFT,
        "title": "modelpack recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "stages"],
        "properties": {
            **head,
            "model": {"description": "Where the model comes from, and what it takes.", "anyOf": models},
            "data": {
                "description": "Data by name: 'name: {source: settings}'.",
                "type": ["object", "null"],
                "additionalProperties": _one_of(entries, {}),
            },
            "budget": _optional(_settings(Budget, definitions)),
            "stages": {
                "description": "What to do, in order.",
                "type": "array",
                "minItems": 1,
                "items": _one_of(step_settings, _SIBLINGS),
            },
        },
        "definitions": definitions,
    }


def _one_of(plugins: dict[str, Any], siblings: dict[str, Any]) -> dict[str, Any]:
    """Accept a plugin's bare name, or exactly one plugin with its settings beside the reserved siblings."""
    return {
        "anyOf": [
            {"type": "string", "enum": sorted(plugins)},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {**plugins, **siblings},
                "oneOf": [{"required": [name]} for name in sorted(plugins)],
            },
        ]
    }


def _optional(settings: dict[str, Any]) -> dict[str, Any]:
    """Let settings be left empty, when none of them is required."""
    return settings if settings.get("required") else {**settings, "type": [settings["type"], "null"]}


def _settings(config: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = config.model_json_schema(ref_template=_REFERENCE)
    definitions |= {name: _plain(item) for name, item in schema.pop("$defs", {}).items()}
    for name, field in config.model_fields.items():
        if "default" in schema["properties"][name]:
            schema["properties"][name]["default"] = _default(field, schema["properties"][name]["default"])
    plain: dict[str, Any] = _plain(schema)
    return plain


def _default(field: FieldInfo, said: Any) -> Any:
    """Give a default as a recipe would hold it: a value with a text of its own is that text."""
    spoken = field.default_factory is not None or isinstance(
        field.default, (bool, int, float, str, tuple, list, dict, type(None))
    )
    return said if spoken else str(field.default)


def _plain(schema: Any) -> Any:
    """Say it in draft 7, and as leniently as binding reads: an unquoted number is text where text is wanted."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _plain(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if "prefixItems" in found:
        found["items"] = found.pop("prefixItems")
    if found.get("type") == "string" and "enum" not in found and "const" not in found:
        found["type"] = ["string", "number", "boolean"]
    return found


def nature(plugin: Stage[Any] | Source[Any]) -> dict[str, list[str]]:
    """Say what a plugin reads, gives and measures, or which distributions it needs."""
    if isinstance(plugin, Source):
        return {"needs": sorted(plugin.needs), "rows": ["invented"] if plugin.synthetic else []}
    return {
        "reads": sorted(plugin.accepts),
        "gives": [plugin.produces.value],
        "leaves the model": sorted(plugin.owes | plugin.marks),
        "cannot work on": sorted(plugin.refuses),
    }


def settings(config: type[BaseModel]) -> list[Setting]:
    """List a plugin's settings in words, in the order of their declaration."""
    schema = config.model_json_schema(ref_template=_REFERENCE)
    known = schema.get("$defs", {})
    found = []
    for name, field in config.model_fields.items():
        body = schema["properties"][name]
        default = "" if field.is_required() else _shown(_default(field, body.get("default")))
        kind = _named(field.annotation, field.metadata) or _words(body, known)
        found.append(Setting(name, kind, default, field.is_required(), field.description or ""))
    return found


def _shown(value: Any) -> str:
    """Write a default as a recipe would."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _named(annotation: Any, metadata: list[Any]) -> str:
    """Give the words for a type that only a recipe knows; empty for all others."""
    several = "list of " if any(item in (tuple, list) for item in _origins(annotation)) else ""
    for mark in marks(annotation, metadata):
        one, more = ("name of data", "data names") if isinstance(mark, DataName) else ("id of a step", "step ids")
        return several + more if several else one
    for kind in _leaves(annotation):
        if isinstance(kind, type) and issubclass(kind, InputPath):
            return several + ("paths" if several else "path")
        if isinstance(kind, type) and issubclass(kind, UserCode):
            words = [word for word in _leaves(annotation) if isinstance(word, str)]
            return several + " | ".join([*words, "file.py:callable"])
    return ""


def _leaves(annotation: Any) -> Iterator[Any]:
    arguments = typing.get_args(annotation)
    if not arguments:
        yield annotation
    for arm in arguments:
        yield from _leaves(arm)


def _origins(annotation: Any) -> Iterator[Any]:
    yield typing.get_origin(annotation)
    for arm in typing.get_args(annotation):
        yield from _origins(arm)


def _words(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """Put a JSON Schema into words."""
    if "$ref" in schema:
        return _words(known[schema["$ref"].rpartition("/")[2]], known)
    if "allOf" in schema:
        return _words(schema["allOf"][0], known)
    arms = [arm for arm in schema.get("anyOf", ()) if arm.get("type") != "null"]
    if arms:
        return " or ".join(dict.fromkeys(_words(arm, known) for arm in arms))
    if "const" in schema:
        return _shown(schema["const"])
    if "enum" in schema:
        return " | ".join(_shown(item) for item in schema["enum"])
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(_simple(item) for item in kind)
    if kind == "array":
        return _array(schema, known)
    if kind == "object":
        inner, named = schema.get("additionalProperties"), ", ".join(schema.get("properties", ()))
        return f"name → {_words(inner, known)}" if isinstance(inner, dict) else f"{{{named}}}" if named else "settings"
    bounds = " and ".join(f"{sign} {_shown(schema[key])}" for key, sign in _BOUNDS if key in schema)
    return f"{_simple(kind)} {bounds}".rstrip()


def _array(schema: dict[str, Any], known: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(_words(item, known) for item in schema['prefixItems'])}]"
    inner = _words(schema.get("items", {}), known)
    return f"list of ({inner})" if " | " in inner or " or " in inner else f"list of {inner}"


def _simple(kind: str) -> str:
    return {"string": "text", "boolean": "true | false", "integer": "whole number"}.get(kind, kind)
