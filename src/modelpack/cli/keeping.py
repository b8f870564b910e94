"""Commands that keep a store in order: verify, roll back, clean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpack.cli import pages
from modelpack.cli.call import Call
from modelpack.cli.command import complete_run
from modelpack.errors import StoreError, UsageError

if TYPE_CHECKING:
    from modelpack.verification import Report, Tell


def verify(
    call: Call,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|ARTIFACT]",
            help="A run with all that it was made from, or one artifact.",
            show_default="the whole store",
            autocompletion=complete_run,
        ),
    ] = None,
) -> None:
    """Compare every byte in the store with its hash.

    Names what was changed, added or lost.

    The exit code is 5 when anything differs.

    Examples:
        modelpack verify
        modelpack verify quickstart@3
    """
    from modelpack.events import Progress

    with call.listen() as emit:
        report = _verified(call, subject, lambda done, total: emit(Progress("verify", "artifacts", done, total)))
    if report.problems:
        raise StoreError(
            "\n".join([f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)} found:", *report.problems]),
            then="delete a damaged artifact's directory, and the next run makes it again",
        )
    document = {"ok": True, "artifacts": report.artifacts, "bytes": report.size}
    call.result(document, lambda: pages.verified(report))


def _verified(call: Call, subject: str | None, tell: Tell) -> Report:
    from modelpack import subjects, verification

    if subject is None:
        if not call.root.exists():
            raise UsageError("there is no store", where=str(call.root), then="name one with --store")
        return verification.verify_store(call.store, tell)
    found = subjects.find(call.store, subject)
    if found.file is not None:
        raise UsageError("a file outside the store has no known hash", where=found.text)
    if found.artifact is not None:
        return verification.verify_artifacts([found.artifact.path], tell)
    assert found.run is not None, "a subject is a run, an artifact or a file"
    return verification.verify_run(call.store, found.run, tell)


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

    What interrupted steps left for their next try goes too. The records of runs stay; an artifact that is needed again
    is made again.

    Examples:
        modelpack gc --keep 3 --dry-run
    """
    store = call.store
    if not call.root.exists():
        raise UsageError("there is no store", where=str(call.root), then="name one with --store")

    def keeping() -> set[str]:
        return call.runs.kept(keep)

    sizes = {
        path.name: sum(item.lstat().st_size for item in path.rglob("*") if item.is_file())
        for path in store.collect(keeping, dry_run=True)
    }
    removed = list(sizes) if dry_run else [path.name for path in store.collect(keeping)]
    freed = sum(sizes.get(name, 0) for name in removed)
    document = {"removed": removed, "bytes": freed, "kept": len(store.artifacts()), "dry_run": dry_run}
    call.result(document, lambda: pages.collected(document))
