"""One step after another, through the store: the only caller of a stage's functions, but for the workers of a crew."""

from __future__ import annotations

import contextlib
import errno
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import inspection
from modelpack.crew import lead
from modelpack.errors import ModelpackError, StoreError
from modelpack.events import Emit, Note, StepStarted
from modelpack.jobs import job
from modelpack.record import StepRun
from modelpack.runs import started_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.artifact import Artifact
    from modelpack.planning import Desk, PlannedStep
    from modelpack.stage import Job
    from modelpack.steps import Step

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Execution:
    """The state of one execution: what was made so far."""

    desk: Desk
    emit: Emit
    environment: Mapping[str, Any]
    made: dict[str, Artifact] = field(default_factory=dict)
    executed: int = 0

    def step(self, step: Step) -> StepRun:
        """Make a step's artifact, or find it, and then do what the stage does outside the store."""
        begun = time.monotonic()
        planned = self.desk.planned(step, self.made)
        artifact, cached = planned.artifact, not planned.why
        if artifact is None or not cached:
            artifact, cached = self._execute(planned)
        self.made[step.id] = artifact
        seconds = round(time.monotonic() - begun, 3)
        for warning in artifact.manifest.record.get("warnings", []) if cached else []:
            self.emit(Note(step.id, warning, warning=True))
        with told(step):
            step.stage.effect(step.config, artifact, self._job(step, Path(), Path()))
        return StepRun(
            step.id,
            step.stage.name,
            artifact.kind.value,
            artifact.id,
            planned.fingerprint,
            cached,
            seconds,
            self._metrics(artifact),
            self.made[step.reads].id if step.reads else "",
        )

    def _metrics(self, artifact: Artifact) -> dict[str, Any]:
        """Give a step's figures, with the size that the engine itself measures."""
        size = {"model_bytes": artifact.model_bytes} if artifact.kind.is_model else {}
        return {**size, **artifact.metrics}

    def _job(self, step: Step, out: Path, scratch: Path) -> Job:
        desk = self.desk
        return job(
            desk.recipe,
            step,
            self.made,
            desk.data,
            out=out,
            scratch=scratch,
            shared=desk.store.shared,
            device=desk.device,
            emit=self.emit,
            past=lambda: inspection.past(desk.store, self.made[step.reads]) if step.reads else (),
        )

    def _run(self, step: Step, job: Job) -> None:
        """Run a stage here, or in the workers of the crew where it trains."""
        desk = self.desk
        if desk.crew.takes(step):
            with desk.store.draft() as between:
                lead.train(desk.crew, desk.recipe, step, self.made, job, folder=between.path)
        else:
            step.stage.run(step.config, job)

    def _execute(self, planned: PlannedStep) -> tuple[Artifact, bool]:
        """Run a stage and seal its result; another process may have done it while this one waited."""
        step, store = planned.step, self.desk.store
        assert planned.work is not None, "steps run in order, so every input is made"

        def waiting() -> None:
            self.emit(Note(step.id, "another process is doing this step: waiting for it"))

        with store.claim(planned.fingerprint, waiting) as scratch:
            if step.id not in self.desk.force:
                artifact = store.find(planned.fingerprint)
                if artifact is not None:
                    return artifact, True
            self._inspect(step)
            self.emit(StepStarted(step.id, step.stage.name, planned.fingerprint, planned.why))
            begun = time.monotonic()
            with store.draft() as draft:
                job = self._job(step, draft.path, scratch)
                with told(step):
                    self._run(step, job)
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
                    "environment": dict(self.environment),
                }
                return store.commit(draft, step.stage.produces, planned.work, record), False

    def _inspect(self, step: Step) -> None:
        """Compare what a step is about to read with its hashes: nothing may be measured on a damaged model."""
        for name in step.inputs:
            damage = self.made[name].verify()
            if damage:
                raise StoreError(
                    f"the result of '{name}' is damaged",
                    where=damage[0],
                    then=f"make it again: run the same command with --force {name}",
                )


@contextlib.contextmanager
def told(step: Step) -> Any:
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
