"""The record of one execution, and how it is written down so that an edit is noticed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.artifact import Kind
from modelpack.errors import StoreError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class StepRun:
    """One step of a run: what it was, and the artifact it ended with.

    Attributes:
        id: The step's id in the recipe.
        stage: The stage's name.
        kind: Of the artifact.
        artifact: Its id.
        fingerprint: Hash of what was asked for.
        cached: Whether the store had it already.
        seconds: How long the step took in this run.
        metrics: Its figures.
        reads: Id of the artifact that it read; empty when it read none, or the record is of an older version.
    """

    id: str
    stage: str
    kind: str
    artifact: str
    fingerprint: str
    cached: bool
    seconds: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reads: str = ""


@dataclass(frozen=True)
class Run:
    """One execution of a recipe.

    Attributes:
        recipe: The recipe's name.
        number: Its version, counting from 1.
        status: ``succeeded``, ``failed``, ``interrupted`` or ``running``.
        started: UTC, ISO 8601.
        seconds: How long it took.
        device: What it ran on.
        steps: The steps that ended with an artifact, in order.
        budget: Verdicts of the budget lines that were measured.
        overrides: ``--set`` values.
        text: SHA-256 of the recipe's text, which lies beside the record.
        error: Why it failed.
        environment: Versions and machine.
    """

    recipe: str
    number: int
    status: str
    started: str
    seconds: float = 0.0
    device: str = "cpu"
    steps: tuple[StepRun, ...] = ()
    budget: tuple[Mapping[str, Any], ...] = ()
    overrides: tuple[str, ...] = ()
    text: str = ""
    error: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How users call it: ``recipe@number``."""
        return f"{self.recipe}@{self.number}"

    def step(self, identity: str) -> StepRun:
        """Give a step by id.

        Raises:
            UsageError: When the run has no such step.
        """
        for step in self.steps:
            if step.id == identity:
                return step
        raise UsageError(
            f"{self.name} has no step '{identity}'", then=did_you_mean(identity, [step.id for step in self.steps])
        )


def way(steps: Sequence[StepRun]) -> list[StepRun]:
    """Leave out what stands beside the way to the result, such as an export of the original to compare with.

    The result is the model in the image; or what was made last of the model that was measured last; or the last model.
    """
    kinds, before = [Kind(step.kind) for step in steps], [_read(steps, place) for place in range(len(steps))]

    def back(place: int | None) -> list[int]:
        return [*back(before[place]), place] if place is not None else []

    models = [back(place) for place, kind in enumerate(kinds) if kind.is_model]
    ends = {kind: back(before[place]) for place, kind in enumerate(kinds) if kind in (Kind.REPORT, Kind.IMAGE)}
    measured = ends.get(Kind.REPORT, [])
    found = ends.get(Kind.IMAGE) or next((item for item in models[::-1] if item[: len(measured)] == measured), [])
    return [
        step
        for place, step in enumerate(steps)
        if place in found or (not kinds[place].is_model and before[place] in found)
    ]


def _read(steps: Sequence[StepRun], place: int) -> int | None:
    """Find the step whose artifact a step read; the newest model before it where that is not recorded."""
    reads = steps[place].reads
    fits = [
        earlier
        for earlier, step in enumerate(steps[:place])
        if (step.artifact == reads if reads else Kind(step.kind).is_model)
    ]
    return fits[-1] if fits else None


def encode(run: Run) -> bytes:
    """Give the bytes of ``run.json``: for people to read, with a checksum."""
    body = json.loads(json.dumps(asdict(run)))
    return (json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True) + "\n").encode()


def decode(data: bytes, where: str) -> Run:
    """Read ``run.json``.

    Raises:
        StoreError: When it cannot be read, or was changed.
    """
    try:
        body = dict(json.loads(data))
        intact = body.pop("checksum") == _checksum(body)
        steps = tuple(StepRun(**step) for step in body["steps"])
        run = Run(**{**body, "steps": steps, "budget": tuple(body["budget"]), "overrides": tuple(body["overrides"])})
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the run's record cannot be read: {error}", where=where) from error
    if not intact:
        raise StoreError("the run's record was changed after it was written", where=where)
    return run


def _checksum(body: Mapping[str, Any]) -> str:
    # Not canonical JSON: a metric may be NaN, and a record of it must still be written.
    return canonical.digest(json.dumps(body, sort_keys=True))
