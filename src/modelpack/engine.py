"""The only caller of stages: runs a recipe's steps in order, through the store, under its budget."""

from __future__ import annotations

import contextlib
import errno
import platform
import shutil
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import __version__
from modelpack.budget import Verdict, judge
from modelpack.device import machine
from modelpack.errors import BudgetError, ModelpackError, StageError, StoreError
from modelpack.events import BudgetChecked, Emit, Event, Note, RunFinished, RunStarted, StepFinished, StepStarted
from modelpack.planning import Desk, PlannedStep, plan
from modelpack.runs import Journal, Run, Runs, StepRun, started_now
from modelpack.stage import Job, Outside
from modelpack.steps import MODEL, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelpack.artifact import Artifact
    from modelpack.recipe import Recipe
    from modelpack.store import Store

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def open_desk(recipe: Recipe, store: Store, device: str, force: Sequence[str] = ()) -> Desk:
    """Lay out what planning needs, with the recipe's newest run for comparison.

    Raises:
        UsageError: When a forced step does not exist.
    """
    history = Runs(store).list(recipe.name)
    return Desk(recipe, store, device, frozenset(force), history[-1] if history else None)


def preflight(desk: Desk, planned: Sequence[PlannedStep]) -> None:
    """Check, before the first stage, everything outside that the steps to come will need.

    Raises:
        ModelpackError: The first thing found missing.
    """
    for item in planned:
        for name in item.step.data:
            desk.digest(name)
        if item.artifact is None or item.why:
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
            environment={"modelpack": __version__, "python": platform.python_version(), **machine(desk.device)},
        )
        with Runs(store).begin(blank, recipe.text) as journal:
            execution = _Execution(desk, journal, emit)
            execution.emit(
                RunStarted("", recipe.name, journal.run.number, tuple(step.id for step in recipe.steps), desk.device)
            )
            with _recorded(journal, execution):
                execution.steps()
            return journal.run


@contextlib.contextmanager
def _recorded(journal: Journal, execution: _Execution) -> Any:
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
        (journal.directory / "traceback.txt").write_text(traceback.format_exc())
        raise
    finally:
        # The disk that stopped the run may refuse this line too; the error on its way says so already.
        with contextlib.suppress(OSError) if message else contextlib.nullcontext():
            journal.update(status=status, error=message)
            execution.emit(
                RunFinished("", journal.run.recipe, journal.run.number, status, execution.executed, journal.run.seconds)
            )


@dataclass
class _Execution:
    """The state of one run: what was made so far."""

    desk: Desk
    journal: Journal
    listener: Emit
    made: dict[str, Artifact] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    executed: int = 0

    def emit(self, event: Event) -> None:
        self.journal.event(event)
        self.listener(event)

    def steps(self) -> None:
        for step in self.desk.recipe.steps:
            begun = time.monotonic()
            planned = self.desk.planned(step, self.made)
            artifact, cached = planned.artifact, not planned.why
            if artifact is None or not cached:
                artifact, cached = self._execute(planned)
            self.made[step.id] = artifact
            seconds = round(time.monotonic() - begun, 3)
            for warning in artifact.manifest.record.get("warnings", []) if cached else []:
                self.emit(Note(step.id, warning, warning=True))
            with _told(step):
                step.stage.effect(step.config, artifact, self._job(step, Path(), Path()))
            self.journal.step(
                StepRun(
                    step.id,
                    step.stage.name,
                    artifact.kind.value,
                    artifact.id,
                    planned.fingerprint,
                    cached,
                    seconds,
                    self._metrics(artifact),
                )
            )
            self.emit(StepFinished(step.id, step.stage.name, artifact.id, cached, seconds))
            self._check_budget(step, artifact)

    def _metrics(self, artifact: Artifact) -> dict[str, Any]:
        """Give a step's figures, with the size that the engine itself measures."""
        size = {"model_bytes": artifact.model_bytes} if artifact.kind.is_model else {}
        return {**size, **artifact.metrics}

    def _job(self, step: Step, out: Path, scratch: Path) -> Job:
        recipe = self.desk.recipe
        return Job(
            model=self.made[step.reads] if step.reads else None,
            inputs=recipe.inputs,
            out=out,
            scratch=scratch,
            steps={name: self.made[name] for name in step.steps},
            data={name: self.desk.data(name) for name in step.data},
            synthetic=frozenset(name for name in step.data if recipe.data[name].source.synthetic),
            device=self.desk.device,
            seed=recipe.seed,
            name=recipe.name,
            step=step.id,
            emit=self.emit,
        )

    def _execute(self, planned: PlannedStep) -> tuple[Artifact, bool]:
        """Run a stage and seal its result; another process may have done it while this one waited."""
        step, store = planned.step, self.desk.store
        assert planned.work is not None, "steps run in order, so every input is made"
        with store.claim(planned.fingerprint) as scratch:
            if step.id not in self.desk.force:
                artifact = store.find(planned.fingerprint)
                if artifact is not None:
                    return artifact, True
            self.emit(StepStarted(step.id, step.stage.name, planned.fingerprint, planned.why))
            begun = time.monotonic()
            with store.draft() as draft:
                job = self._job(step, draft.path, scratch)
                with _told(step):
                    step.stage.run(step.config, job)
                self.executed += 1
                record = {
                    "recipe": self.desk.recipe.text,
                    "name": self.desk.recipe.name,
                    "step": step.id,
                    "metrics": job.metrics,
                    "results": job.results,
                    "warnings": job.warnings,
                    "device": self.desk.device,
                    "seconds": round(time.monotonic() - begun, 3),
                    "finished": started_now(),
                    "environment": dict(self.journal.run.environment),
                }
                return store.commit(draft, step.stage.produces, planned.work, record), False

    def _check_budget(self, step: Step, artifact: Artifact) -> None:
        """Judge every line that this step decides.

        Raises:
            BudgetError: When one is not met.
        """
        recipe = self.desk.recipe
        limits = recipe.budget.lines()
        new = []
        for name in (name for name, who in recipe.deciding.items() if who == step.id):
            measured = artifact.model_bytes if name == "size" else artifact.metrics.get(name)
            if not isinstance(measured, (int, float)):
                raise StageError(f"measured no '{name}', which the budget needs", where=step.id)
            original = self.made[MODEL].model_bytes
            new.append(judge(name, limits[name], measured, step=step.id, original=original))
        self.verdicts += new
        self.journal.update(budget=tuple(verdict.to_json() for verdict in self.verdicts))
        for verdict in new:
            self.emit(BudgetChecked(step.id, verdict.name, verdict.limit, verdict.measured, verdict.met))
        missed = [verdict for verdict in new if not verdict.met]
        if missed:
            told = "; ".join(f"{item.name} is {item.measured:.4g}, the budget says {item.limit}" for item in missed)
            raise BudgetError(
                f"the budget is not met: {told}",
                where=step.id,
                then="nothing was packaged; finished steps are kept: change a setting or the budget and run again",
            )


@contextlib.contextmanager
def _told(step: Step) -> Any:
    """Say which step an error comes from, and turn a full disk under a stage into the store's own error."""
    try:
        yield
    except ModelpackError as error:
        error.where = f"{step.id}: {error.where}" if error.where else step.id
        raise
    except OSError as error:
        if error.errno not in _WRITING:
            raise
        raise StoreError(
            f"cannot write: {error.strerror}",
            where=step.id,
            then="free some space and run the same command again; finished steps are kept",
        ) from error


def payload(artifact: Artifact, output: Path) -> list[Path]:
    """Copy an artifact's payload out of the store.

    Args:
        artifact: What to copy.
        output: A directory that does not exist yet or is empty.

    Returns:
        The files written.

    Raises:
        StoreError: When the artifact is damaged or the place cannot be written.
    """
    damage = artifact.verify()
    if damage:
        raise StoreError("the artifact is damaged", where=damage[0])
    written = []
    try:
        for item in artifact.manifest.files:
            target = output / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / item.name, target)
            written.append(target)
    except OSError as error:
        raise StoreError(f"cannot write: {error.strerror}", where=str(output)) from error
    return written
