"""Commands that begin with a recipe: write one, check it, plan it, run it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpack.cli import pages
from modelpack.cli.call import Call
from modelpack.cli.command import (
    DeviceOption,
    NnodesOption,
    NprocOption,
    RecipeArgument,
    SetOption,
    UntilOption,
)
from modelpack.cli.output import encode, out
from modelpack.errors import BudgetError, UsageError
from modelpack.events import BudgetChecked

if TYPE_CHECKING:
    from modelpack.events import Event
    from modelpack.planning import PlannedStep


def compress(
    call: Call,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STEP", help="Run this step even if its result is in the store. Repeatable."),
    ] = None,
    until: UntilOption = "",
    nproc: NprocOption = 1,
    nnodes: NnodesOption = 1,
    rdzv: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", show_default=False, help="Where several hosts meet; the host that this names leads."
        ),
    ] = "",
    max_restarts: Annotated[
        int, typer.Option(min=0, metavar="N", help="Start a step's processes anew so often, when one is lost.")
    ] = 3,
    wait: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long processes and hosts wait for each other.")
    ] = 600.0,
) -> None:
    """Run a recipe, and say what it gained.

    Steps whose result is in the store already are not run again. With --json every event is one line.
    With --nproc, steps that train share their work among processes; with --nnodes among hosts, on each of which the
    same command is typed.

    Examples:
        modelpack compress recipes/quickstart.yaml
        modelpack compress recipe.yaml --set stages.prune.macs=0.5 --device cuda
        modelpack compress recipe.yaml --until bench
        modelpack compress recipe.yaml --nproc 4
        modelpack compress recipe.yaml --nnodes 2 --rdzv 10.0.0.1:29400
    """
    from modelpack import device as devices
    from modelpack import engine, summary
    from modelpack import recipe as recipes
    from modelpack.crew import Crew
    from modelpack.crew.attend import attend

    loaded = recipes.load(recipe, overrides or ())
    loaded = loaded.upto(until) if until else loaded
    crew = Crew(nproc, nnodes, rdzv, max_restarts, wait)
    desk = engine.open_desk(loaded, call.store, devices.resolve(device), force or (), crew)
    crew.expect(loaded, desk.device)
    verdicts: list[BudgetChecked] = []
    try:
        with call.listen(stream=True) as emit:

            def listen(event: Event) -> None:
                verdicts.extend([event] if isinstance(event, BudgetChecked) else [])
                emit(event)

            run = attend(desk, emit, lambda: engine.run(desk, listen))
    except BudgetError:
        if not call.json:
            out(pages.budget([event.to_json() for event in verdicts]))
        raise
    if run is None:
        call.say("done: the host that leads has the result")
        return
    found = summary.summarize(run, call.store)
    if call.json:
        out(encode({"event": "summary", **found.to_json()}))
    elif not call.quiet:
        out(pages.summary(found, call.typed))


def check(call: Call, recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Tell everything that is wrong with a recipe.

    Nothing is run and torch is not loaded. The exit code is 0 when the recipe is good and 2 when it is not.

    Examples:
        modelpack check recipe.yaml
        modelpack check recipe.yaml --set stages.prune.macs=0.5
    """
    from modelpack import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    names = [step.id for step in loaded.steps]
    document = {"ok": True, "name": loaded.name, "steps": names, "budget": sorted(loaded.budget.lines())}
    call.result(document, lambda: f"ok: {len(names)} steps ({', '.join(names)})")


def plan(
    call: Call,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STEP", help="Plan as if this step had to run. Repeatable.")
    ] = None,
    until: UntilOption = "",
    nproc: NprocOption = 1,
    nnodes: NnodesOption = 1,
) -> None:
    """Tell what `compress` would run, and why.

    Examples:
        modelpack plan recipe.yaml
        modelpack plan recipe.yaml --set stages.quantize.method=dynamic
    """
    from modelpack import device as devices
    from modelpack import engine, planning
    from modelpack import recipe as recipes
    from modelpack.crew import Crew

    loaded = recipes.load(recipe, overrides or ())
    loaded = loaded.upto(until) if until else loaded
    crew = Crew(nproc, nnodes)
    desk = engine.open_desk(loaded, call.store, devices.resolve(device), force or (), crew)
    steps = [_planned(item) for item in planning.plan(desk)]
    call.result({"recipe": loaded.name, "device": desk.device, "steps": steps}, lambda: pages.plan(steps))


def _planned(item: PlannedStep) -> dict[str, Any]:
    step = item.step
    cached = item.artifact is not None and not item.why
    return {
        "id": step.id,
        "stage": step.stage.name,
        "cached": cached,
        "why": item.why,
        "assumes": {known.name: {"value": known.value, "why": known.why} for known in item.assumptions},
        "reads": list(step.inputs),
        "data": list(step.data),
        "fingerprint": item.fingerprint,
        "artifact": item.artifact.id if item.artifact is not None and cached else None,
    }


def init(
    call: Call,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the recipe goes.")] = Path("recipe.yaml"),
    factory: Annotated[
        str, typer.Option(metavar="CODE", help="What builds the model: file.py:callable or package.module:callable.")
    ] = "",
    weights: Annotated[str, typer.Option(metavar="FILE", help="Its weights: .safetensors, .pt or .pth.")] = "",
    onnx: Annotated[str, typer.Option(metavar="FILE", help="An ONNX file in place of a torch model.")] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=SHAPE", help="An input, such as image=batch,3,224,224[:dtype]. Repeatable."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE:PATH",
            help="Data, such as train=npz:train.npz; the first calibrates, the last tests. Repeatable.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What its runs are called; the file's name when absent.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a first recipe, commented and checked.

    On a terminal it asks for what no option says.

    Examples:
        modelpack init
        modelpack init --factory net.py:build --input image=batch,3,32,32
        modelpack init --onnx model.onnx --output recipes/mine.yaml
    """
    from modelpack import recipe as recipes
    from modelpack import schema, starter

    if output.exists() and not force:
        raise UsageError("the file exists", where=str(output), then="choose another --output, or say --force")
    wish = starter.Wish(factory, weights, onnx, tuple(inputs or ()), tuple(data or ()), name)
    if not (factory or onnx) and sys.stdin.isatty() and not call.json:
        wish = _ask(wish)
    text = starter.write(wish, output)
    beside = output.parent / starter.SCHEMA_FILE
    written = [output] if beside.exists() else [output, beside]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        recipes.parse(text, output)
        output.write_text(text)
        if beside in written:
            beside.write_text(json.dumps(schema.document(), indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(error.filename)) from error
    call.result(
        {"written": [str(path) for path in written]},
        lambda: "\n".join([*(f"wrote {path}" for path in written), "", f"next: modelpack compress {output}"]),
    )


def _ask(wish: Any) -> Any:
    """Ask for what a first recipe cannot do without."""
    from dataclasses import replace

    model = typer.prompt("What builds the model (file.py:callable), or which ONNX file is it?", err=True)
    if model.endswith(".onnx"):
        return replace(wish, onnx=model)
    weights = typer.prompt("Its weights (.safetensors, .pt; empty for the factory's own)", default="", err=True)
    inputs = typer.prompt("Its inputs, such as image=batch,3,224,224; several with spaces between", err=True)
    data = typer.prompt("Data, such as train=npz:train.npz test=npz:test.npz (empty for invented values)", "", err=True)
    return replace(wish, factory=model, weights=weights, inputs=tuple(inputs.split()), data=tuple(data.split()))
