"""What a report says of runs and artifacts: plain data, gathered from their records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelpack import __version__, inspection, summary
from modelpack.errors import ModelpackError, UsageError
from modelpack.record import Run, StepRun
from modelpack.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelpack.artifact import Artifact
    from modelpack.store import Store
    from modelpack.subjects import Subject

SCHEMA = 1
"""Version of the document; a reader that does not know it says so."""


def gather(store: Store, subjects: Iterable[Subject]) -> dict[str, Any]:
    """Give the content of ``report.json``.

    An artifact is told with all that it was made from. Of a step whose artifact is gone its figures are left.

    Raises:
        UsageError: For a file outside the store, of which nothing is recorded.
        StoreError: When a run's recipe was changed.
    """
    return {"schema": SCHEMA, "modelpack": __version__, "subjects": [_subject(store, item) for item in subjects]}


def _subject(store: Store, subject: Subject) -> dict[str, Any]:
    if subject.run is not None:
        run, text = subject.run, Runs(store).text(subject.run)
    elif subject.artifact is not None:
        run, text = _history(store, subject.artifact), subject.artifact.manifest.record.get("recipe", "")
    else:
        raise UsageError(
            "nothing is recorded of a file outside the store",
            where=subject.text,
            then="name a run or an artifact; `modelpack show` and `modelpack verify` look at files",
        )
    summed = summary.summarize(run, store)
    return {
        "name": subject.text,
        "kind": "run" if subject.run is not None else "artifact",
        "recipe": run.recipe,
        "status": run.status,
        "started": run.started,
        "seconds": run.seconds,
        "device": run.device,
        "error": run.error,
        "overrides": list(run.overrides),
        "executed": summed.executed,
        "changes": [asdict(item) for item in summed.changes],
        "budget": [dict(line) for line in run.budget],
        "warnings": [{"step": step, "text": told} for step, told in summed.warnings],
        "image": asdict(summed.image) if summed.image else None,
        "steps": [_step(store, step) for step in run.steps],
        "environment": dict(run.environment),
        "text": text,
    }


def _history(store: Store, artifact: Artifact) -> Run:
    """Take an artifact and its ancestors, the oldest first, for a run that ended with it."""
    ancestors = [item.id for item in reversed(inspection.lineage(store, artifact)) if item.stage]
    record = artifact.manifest.record
    return Run(
        str(record.get("name", "")),
        0,
        "",
        str(record.get("finished", "")),
        device=str(record.get("device", "")),
        steps=tuple(_made(store.get(identity)) for identity in ancestors),
        environment=record.get("environment", {}),
    )


def _made(artifact: Artifact) -> StepRun:
    record, stage = artifact.manifest.record, str(artifact.manifest.work["stage"])
    size = {"model_bytes": artifact.model_bytes} if artifact.kind.is_model else {}
    return StepRun(
        str(record.get("step", stage)),
        stage,
        artifact.kind.value,
        artifact.id,
        artifact.manifest.fingerprint,
        cached=False,
        seconds=float(record.get("seconds", 0.0)),
        metrics={**size, **artifact.metrics},
        reads=artifact.manifest.work.get("model") or "",
    )


def _step(store: Store, step: StepRun) -> dict[str, Any]:
    told = {**asdict(step), "gone": False, "config": {}, "results": {}, "warnings": []}
    try:
        manifest = store.get(step.artifact).manifest
    except ModelpackError:
        return {**told, "gone": True}
    record = manifest.record
    # A step that was taken from the store took its time once, when it was made.
    return {
        **told,
        "seconds": record.get("seconds", step.seconds),
        "config": manifest.work["config"],
        "results": record.get("results", {}),
        "warnings": record.get("warnings", []),
    }
