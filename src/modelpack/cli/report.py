"""The command that makes a page of what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelpack.cli.call import Call
from modelpack.cli.command import complete_run
from modelpack.cli.output import encode
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from modelpack.subjects import Subject

_USUAL = Path("report.html")


def report(
    call: Call,
    subject: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|RECIPE|ARTIFACT]...",
            help="Runs (NAME or NAME@7), recipes (FILE.yaml: its current run), steps of runs (NAME:STEP), artifacts.",
            show_default="the current run of the newest recipe",
            autocompletion=complete_run,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the page is written.", show_default=str(_USUAL)),
    ] = None,
) -> None:
    """Make a page of what was done and gained.

    The page is one file that needs no network and no script. With --json the data that it is made of go to standard
    output, and a page is written only where --output says so.

    Examples:
        modelpack report
        modelpack report quickstart@1 quickstart@2 --output both.html
        modelpack report --json > report.json
    """
    from modelpack import reporting
    from modelpack.report import page

    gathered = reporting.gather(call.store, [_find(call, text) for text in subject or (None,)])
    document = json.loads(encode(gathered))  # the page is made of nothing but what --json gives
    place = output or (None if call.json else _USUAL)
    if place is not None:
        _write(place, page.render(document))
    call.result(document, lambda: f"wrote {place}")


def _find(call: Call, text: str | None) -> Subject:
    """Find what a user named; of a recipe file the current run is meant."""
    from modelpack import subjects

    if text is not None and text.endswith((".yaml", ".yml")):
        from modelpack import recipe

        return subjects.find(call.store, recipe.load(Path(text)).name)
    return subjects.find(call.store, text)


def _write(place: Path, page: str) -> None:
    try:
        place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(place), then="name another --output") from error
