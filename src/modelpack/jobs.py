"""The job of a step, made the same way for a stage that runs here and for one that runs in workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.stage import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from modelpack.artifact import Artifact
    from modelpack.data import DataSource
    from modelpack.events import Emit
    from modelpack.recipe import Recipe
    from modelpack.steps import Step


def job(
    recipe: Recipe,
    step: Step,
    made: Mapping[str, Artifact],
    opened: Callable[[str], DataSource],
    *,
    out: Path,
    scratch: Path,
    shared: Path,
    device: str,
    emit: Emit,
    past: Callable[[], Sequence[Artifact]] = tuple,
) -> Job:
    """Collect all that a step's stage may touch.

    Args:
        recipe: The recipe.
        step: One of its steps.
        made: The artifacts that it reads and names, by the id of their step.
        opened: Gives a data entry's source.
        out: Empty directory for the result.
        scratch: What an earlier try left.
        shared: What all steps share.
        device: ``cpu`` or ``cuda:N``.
        emit: Receives every event.
        past: Tells where the model that it reads comes from.
    """
    return Job(
        model=made[step.reads] if step.reads else None,
        inputs=recipe.inputs,
        out=out,
        scratch=scratch,
        shared=shared,
        steps={name: made[name] for name in step.steps},
        data={name: opened(name) for name in step.data},
        synthetic=frozenset(name for name in step.data if recipe.data[name].source.synthetic),
        device=device,
        seed=recipe.seed,
        name=recipe.name,
        step=step.id,
        past=past,
        emit=emit,
    )
