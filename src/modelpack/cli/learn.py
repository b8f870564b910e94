"""Commands that explain: what plugins exist, what a recipe may hold, what this machine offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack.cli import details
from modelpack.cli.call import Call
from modelpack.errors import MissingError, UsageError

if TYPE_CHECKING:
    from modelpack.registry import Plugins


def _complete_stage(incomplete: str) -> list[str]:
    from modelpack import registry

    return [name for name in registry.stages().names() if name.startswith(incomplete)]


def _complete_source(incomplete: str) -> list[str]:
    from modelpack import registry

    return [name for name in registry.sources().names() if name.startswith(incomplete)]


def stages(
    call: Call,
    name: Annotated[
        str | None, typer.Argument(help="Tell the settings of this stage.", autocompletion=_complete_stage)
    ] = None,
) -> None:
    """List the stages, or explain one.

    Examples:
        modelpack stages
        modelpack stages prune
    """
    from modelpack import registry

    _plugins(call, registry.stages(), name, "stages")


def sources(
    call: Call,
    name: Annotated[
        str | None, typer.Argument(help="Tell the settings of this source.", autocompletion=_complete_source)
    ] = None,
) -> None:
    """List the data sources, or explain one.

    Examples:
        modelpack sources
        modelpack sources image_folder
    """
    from modelpack import registry

    _plugins(call, registry.sources(), name, "sources")


def _plugins(call: Call, plugins: Plugins[Any], name: str | None, command: str) -> None:
    from modelpack import schema

    if name is not None:
        plugin = plugins.get(name)
        rows = [item.to_json() for item in schema.settings(plugin.config)]
        document = {"name": name, "summary": plugin.summary, "nature": schema.nature(plugin), "settings": rows}
        call.result(document, lambda: details.settings(document))
        return
    listed = [_listed(plugins, item) for item in plugins.names()]
    call.result(listed, lambda: details.plugins(listed, call.typed(f"{command} NAME")))


def _listed(plugins: Plugins[Any], name: str) -> dict[str, Any]:
    """Describe a plugin in one line; one that cannot be imported says so instead of hiding the others."""
    from modelpack import schema

    owner = plugins.entries[name].dist
    entry = {"name": name, "from": owner.name if owner else ""}
    try:
        plugin = plugins.get(name)
    except (MissingError, UsageError) as error:
        return {**entry, "summary": f"unusable: {error.what}"}
    return {**entry, "summary": plugin.summary, "nature": schema.nature(plugin)}


def schema(
    call: Call,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there; to standard output when absent."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Give the same as a text for people.")] = False,
) -> None:
    """Give the JSON Schema of recipes, for editors.

    Examples:
        modelpack schema --output recipe.schema.json
        modelpack schema --markdown
    """
    from modelpack import reference
    from modelpack import schema as schemas

    document = schemas.document()
    text = reference.markdown().rstrip() if markdown else json.dumps(document, indent=1, ensure_ascii=False)
    if output is None:
        call.result(document, lambda: text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(output)) from error
    call.result({"written": [str(output)]}, lambda: f"wrote {output}")


def doctor(
    call: Call,
    registry: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Also ask the registry of this image, such as python:3.11-slim.")
    ] = None,
) -> None:
    """Tell what this machine offers and lacks.

    Versions, processor, CUDA, Docker, and what each missing extra would bring.

    Examples:
        modelpack doctor
        modelpack doctor --registry python:3.11-slim
    """
    from modelpack import doctor as doctors

    found = [item.to_json() for item in doctors.examine(registry)]
    call.result(found, lambda: details.findings(found))
