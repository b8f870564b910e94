"""Commands that look at what was done: list, show, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack.cli import details, pages
from modelpack.cli.call import Call
from modelpack.cli.command import RunArgument, complete_run
from modelpack.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from modelpack.artifact import Artifact
    from modelpack.store import Store
    from modelpack.subjects import Subject
    from modelpack.summary import Side


def runs(
    call: Call,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Only runs of the recipe of this name.", autocompletion=complete_run),
    ] = None,
) -> None:
    """List the runs in the store, the newest last.

    Examples:
        modelpack runs
        modelpack runs quickstart --json
    """
    from dataclasses import asdict

    history = call.runs
    names = history.recipes()
    if recipe is not None and recipe not in names:
        raise UsageError(f"no recipe called '{recipe}' has run", where=str(call.root), then=did_you_mean(recipe, names))
    found = history.list(recipe)
    current = {name: run.number for name in names if (run := history.current(name)) is not None}
    document = [{**asdict(run), "name": run.name, "current": current.get(run.recipe) == run.number} for run in found]
    call.result(document, lambda: pages.runs(found, current))


def show(
    call: Call,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|ARTIFACT|FILE.onnx]",
            help="A run (NAME or NAME@7), a step of it (NAME:STEP), 6 or more digits of an artifact's id, or a file.",
            show_default="the current run of the newest recipe",
            autocompletion=complete_run,
        ),
    ] = None,
) -> None:
    """Show a run, an artifact or an ONNX file.

    Tells lineage, settings, figures, layers and sizes.

    Examples:
        modelpack show quickstart
        modelpack show quickstart:quantize
        modelpack show model.onnx
    """
    from dataclasses import asdict

    from modelpack import inspection, subjects

    store = call.store
    found = subjects.find(store, subject)
    if found.file is not None:
        inside = inspection.onnx_file(found.file)
        size = found.file.stat().st_size
        call.result(
            {"file": str(found.file), "size": size, **inside}, lambda: details.onnx_file(found.text, size, inside)
        )
    elif found.run is not None:
        run = found.run
        newest = call.runs.current(run.recipe)
        current = newest is not None and newest.number == run.number
        call.result({**asdict(run), "name": run.name, "current": current}, lambda: pages.run(run, current))
    else:
        assert found.artifact is not None, "a subject is a run, an artifact or a file"
        shown = _artifact(store, found.artifact)
        call.result(shown, lambda: details.artifact(shown))


def _artifact(store: Store, artifact: Artifact) -> dict[str, Any]:
    from modelpack import inspection

    manifest = artifact.manifest
    record, work = manifest.record, manifest.work
    size = {"model_bytes": artifact.model_bytes} if artifact.kind.is_model else {}
    return {
        "id": artifact.id,
        "kind": artifact.kind.value,
        "stage": work["stage"],
        "version": work["version"],
        "fingerprint": manifest.fingerprint,
        "recipe": record.get("name", ""),
        "step": record.get("step", ""),
        "finished": record.get("finished", ""),
        "seconds": record.get("seconds", 0.0),
        "device": record.get("device", ""),
        "path": str(artifact.path),
        "config": work["config"],
        "metrics": {**size, **artifact.metrics},
        "results": record.get("results", {}),
        "warnings": record.get("warnings", []),
        "files": [{"name": item.name, "size": item.size, "sha256": item.sha256} for item in manifest.files],
        "lineage": [item.to_json() for item in inspection.lineage(store, artifact)],
        "contents": inspection.contents(artifact),
    }


SideArgument = Annotated[
    str,
    typer.Argument(help="A run (NAME or NAME@7), or an artifact.", show_default=False, autocompletion=complete_run),
]


def diff(call: Call, a: SideArgument, b: SideArgument) -> None:
    """Compare two runs or artifacts side by side.

    Examples:
        modelpack diff quickstart@1 quickstart@2
    """
    from modelpack import subjects, summary

    sides = [_side(call, subjects.find(call.store, text)) for text in (a, b)]
    document = summary.differences(*sides).to_json()
    call.result(document, lambda: details.difference(document))


def _side(call: Call, subject: Subject) -> Side:
    from modelpack import summary

    if subject.run is not None:
        return summary.side_of_run(subject.run, call.store, call.runs.text(subject.run))
    if subject.artifact is None:
        raise UsageError(
            "a file has no settings to compare", where=subject.text, then="`modelpack show` tells its layers"
        )
    return summary.side_of_artifact(subject.artifact)


def get(
    call: Call,
    run: RunArgument = None,
    step: Annotated[
        str | None, typer.Argument(metavar="[STEP]", help="Which step's result.", show_default="the last model")
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A directory that is empty or not there yet.")
    ],
) -> None:
    """Copy a model or an image out of the store.

    The copy is compared with the store's hashes first.

    Examples:
        modelpack get quickstart --output model
        modelpack get quickstart@2 build --output image
    """
    from modelpack import engine, subjects

    found = subjects.find(call.store, run)
    if step is not None and found.run is not None:
        artifact = call.store.get(found.run.step(step).artifact)
    elif step is not None:
        raise UsageError("only a run has steps", where=found.text, then="leave the step out")
    else:
        artifact = found.artifact or subjects.model(call.store, found)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UsageError("the place is not empty", where=str(output), then="name another --output")
    written = [str(path) for path in engine.payload(artifact, output)]
    call.result({"artifact": artifact.id, "written": written}, lambda: "\n".join(f"wrote {path}" for path in written))
