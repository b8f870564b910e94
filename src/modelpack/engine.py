"""Runs recipes: their steps in order, under their budget, with their history."""

from __future__ import annotations

import contextlib
import platform
import shutil
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import __version__
from modelpack.budget import Budget, judge
from modelpack.crew import Crew
from modelpack.device import machine
from modelpack.document import Scalar
from modelpack.errors import BudgetError, ModelpackError, Place, StageError, StoreError, UsageError, did_you_mean
from modelpack.events import BudgetChecked, Emit, Event, RunFinished, RunStarted, StepFinished
from modelpack.execution import Execution
from modelpack.planning import Desk, PlannedStep, plan
from modelpack.recipe import Recipe
from modelpack.record import Run
from modelpack.runs import Journal, Runs, started_now
from modelpack.stage import Outside
from modelpack.steps import MODEL, Step
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.artifact import Artifact
    from modelpack.stage import Stage, StageConfig
    from modelpack.store import Store


def open_desk(recipe: Recipe, store: Store, device: str, force: Sequence[str] = (), crew: Crew | None = None) -> Desk:
    """Lay out what planning needs, with the recipe's newest run for comparison.

    Raises:
        UsageError: When a forced step does not exist.
    """
    known = [step.id for step in recipe.steps]
    for name in force:
        if name not in known:
            raise UsageError(f"no step is named '{name}'", where="--force", then=did_you_mean(name, known))
    history = Runs(store).list(recipe.name)
    return Desk(recipe, store, device, frozenset(force), history[-1] if history else None, crew or Crew())


def preflight(desk: Desk, planned: Sequence[PlannedStep]) -> None:
    """Check, before the first stage, everything outside that the steps to come will need.

    Raises:
        ModelpackError: The first thing found missing.
    """
    for item in planned:
        for name in item.step.data:
            desk.digest(name)
        if item.artifact is None or item.why:
            for name in item.step.data:
                desk.recipe.data[name].source.require()
            outside = Outside(desk.device, {name: desk.data(name) for name in item.step.data})
            item.step.stage.preflight(item.step.config, outside)


def run(desk: Desk, emit: Emit) -> Run:
    """Execute what is not in the store yet.

    Args:
        desk: Recipe, store and device.
        emit: Receives every event.

    Returns:
        The finished run.

    Raises:
        BudgetError: When a measurement missed the budget; nothing after it ran.
        StageError: When a stage failed.
        ModelpackError: For everything else of the error tree.
    """
    recipe, store = desk.recipe, desk.store
    with store.locked():
        preflight(desk, plan(desk))
        blank = Run(
            recipe.name,
            0,
            "running",
            started_now(),
            device=desk.device,
            overrides=recipe.overrides,
            environment=_environment(desk.device),
        )
        with Runs(store).begin(blank, recipe.text) as journal:

            def told(event: Event) -> None:
                journal.event(event)
                emit(event)

            execution = Execution(desk, told, blank.environment)
            told(RunStarted("", recipe.name, journal.run.number, tuple(step.id for step in recipe.steps), desk.device))
            with _recorded(journal, execution):
                for step in recipe.steps:
                    done = execution.step(step)
                    journal.step(done)
                    told(StepFinished(step.id, done.stage, done.artifact, done.cached, done.seconds))
                    _check_budget(execution, journal, step)
            return journal.run


def once(
    store: Store,
    stage: Stage[Any],
    config: StageConfig,
    model: Artifact,
    *,
    name: str,
    device: str = "cpu",
    emit: Emit = lambda _event: None,
) -> Artifact:
    """Run one stage on a model outside any recipe and its history; through the store, so that nothing is done twice.

    Args:
        store: Where the model is and the result goes.
        stage: The stage; its settings name neither steps nor data.
        config: Its settings.
        model: What it reads.
        name: What to call the result, such as the name of the recipe that made the model.
        device: ``cpu`` or ``cuda:N``.
        emit: Receives every event.

    Raises:
        StageError: When the stage failed.
        ModelpackError: For everything else of the error tree.
    """
    if model.kind not in stage.accepts:
        accepted = " or ".join(sorted(stage.accepts))
        raise UsageError(f"'{stage.name}' reads {accepted}, this artifact is {model.kind}", where=model.id[:12])
    work = model.manifest.work
    inputs = {key: TensorSpec.model_validate(spec) for key, spec in model.read_json("signature.json")["inputs"].items()}
    step = Step(stage.name, stage, config, MODEL, (), (), Scalar(Place("command line", 1), "", 1))
    text = model.manifest.record.get("recipe", "")
    recipe = Recipe(name, Path(), text, (), work.get("seed", 0), (step,), {}, inputs, Budget(), {})
    desk, made = Desk(recipe, store, device), {MODEL: model}
    with store.locked():
        preflight(desk, [desk.planned(step, made)])
        execution = Execution(desk, emit, _environment(device), made)
        done = execution.step(step)
        emit(StepFinished(step.id, done.stage, done.artifact, done.cached, done.seconds))
    return execution.made[step.id]


def _environment(device: str) -> dict[str, Any]:
    return {"modelpack": __version__, "python": platform.python_version(), **machine(device)}


@contextlib.contextmanager
def _recorded(journal: Journal, execution: Execution) -> Any:
    """Write into the journal how the run ended, whatever ended it."""
    status, message = "succeeded", ""
    try:
        yield
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the user"
        raise
    except ModelpackError as error:
        status, message = "failed", str(error)
        raise
    except BaseException as error:
        status, message = "failed", f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            (journal.directory / "traceback.txt").write_text(traceback.format_exc())
        raise
    finally:
        # The disk that stopped the run may refuse this line too; the error on its way says so already.
        with contextlib.suppress(StoreError) if message else contextlib.nullcontext():
            journal.update(status=status, error=message)
            execution.emit(
                RunFinished("", journal.run.recipe, journal.run.number, status, execution.executed, journal.run.seconds)
            )


def _check_budget(execution: Execution, journal: Journal, step: Step) -> None:
    """Judge every line that this step decides.

    Raises:
        BudgetError: When one is not met.
    """
    recipe, artifact = execution.desk.recipe, execution.made[step.id]
    limits = recipe.budget.lines()
    new = []
    for name in (name for name, who in recipe.deciding.items() if who == step.id):
        original = execution.made[MODEL]
        measured = _measured(name, artifact, original)
        if not isinstance(measured, (int, float)):
            raise StageError(f"measured no '{name}', which the budget needs", where=step.id)
        new.append(judge(name, limits[name], measured, step=step.id, original=original.model_bytes))
    journal.update(budget=(*journal.run.budget, *(verdict.to_json() for verdict in new)))
    for verdict in new:
        execution.emit(BudgetChecked(step.id, verdict.name, verdict.limit, verdict.measured, verdict.met))
    missed = [verdict for verdict in new if not verdict.met]
    if missed:
        told = "; ".join(f"{item.name} is {item.figure}, the budget says {item.limit}" for item in missed)
        raise BudgetError(
            f"the budget is not met: {told}",
            where=step.id,
            then="nothing was packaged; finished steps are kept: change a setting or the budget and run again",
        )


def _measured(name: str, artifact: Artifact, original: Artifact) -> Any:
    """Give the figure that a line of the budget is about: of the artifact, or against the recipe's model."""
    if name == "size":
        return artifact.model_bytes
    if name == "macs":
        return artifact.metrics["mac_count"] / max(1, original.metrics["mac_count"])
    return artifact.metrics.get(name)


def payload(artifact: Artifact, output: Path) -> list[Path]:
    """Copy an artifact's payload out of the store.

    Args:
        artifact: What to copy.
        output: A directory that does not exist yet or is empty.

    Returns:
        The files written.

    Raises:
        StoreError: When the artifact is damaged.
        UsageError: When the place cannot be written.
    """
    damage = artifact.verify()
    if damage:
        raise StoreError(
            "the artifact is damaged", where=damage[0], then="delete its directory and run the recipe again"
        )
    written = []
    try:
        for item in artifact.manifest.files:
            target = output / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / item.name, target)
            written.append(target)
    except OSError as error:
        raise UsageError(
            f"cannot write: {error.strerror}", where=str(error.filename or output), then="name another --output"
        ) from error
    return written
