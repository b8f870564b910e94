"""Commands that keep a store in order: roll back, clean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpack.cli import pages
from modelpack.cli.call import Call
from modelpack.cli.command import complete_run
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def rollback(
    call: Call,
    recipe: Annotated[
        str, typer.Argument(metavar="NAME", help="The recipe's name.", show_default=False, autocompletion=complete_run)
    ],
    number: Annotated[int, typer.Argument(metavar="N", help="The run to make current again.", show_default=False)],
) -> None:
    """Make an earlier run the current one.

    Nothing is deleted, so that it can be undone the same way.

    Examples:
        modelpack rollback quickstart 2
    """
    run = call.runs.rollback(recipe, number)
    call.result({"recipe": recipe, "current": run.number}, lambda: f"{run.name} is current")


def gc(
    call: Call,
    keep: Annotated[
        int,
        typer.Option("--keep", metavar="N", min=0, help="Keep the N newest runs of each recipe, and the current one."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove artifacts that no kept run was made from.

    What interrupted steps left for their next try goes too, and what steps kept to save time. The records of runs stay;
    an artifact that is needed again is made again.

    Examples:
        modelpack gc --keep 3 --dry-run
    """
    store = call.store
    if not call.root.exists():
        raise UsageError("there is no store", where=str(call.root), then="name one with --store")

    def keeping() -> set[str]:
        return call.runs.kept(keep)

    sizes = {path.name: _size(path) for path in store.collect(keeping, dry_run=True)}
    spared = _size(store.shared)
    removed = list(sizes) if dry_run else [path.name for path in store.collect(keeping)]
    freed = spared + sum(sizes.get(name, 0) for name in removed)
    document = {"removed": removed, "bytes": freed, "kept": len(store.artifacts()), "dry_run": dry_run}
    call.result(document, lambda: pages.collected(document))


def _size(directory: Path) -> int:
    return sum(item.lstat().st_size for item in directory.rglob("*") if item.is_file())
