"""Pruning in several steps: the settings, and how a model is healed after each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from modelpack.errors import StageError
from modelpack.stages import batch_norms, remarks
from modelpack.stages.answers_config import AnswersConfig, remembering
from modelpack.stages.batch_norms import BatchNormsConfig
from modelpack.stages.schedule_config import FloatScheduleConfig, schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelpack.numerics.distillation import Imitation
    from modelpack.numerics.pruning import Pruned, Target
    from modelpack.numerics.pruning.gradual import Progress
    from modelpack.numerics.training import Rows
    from modelpack.stage import Job

_TEACHER = 0.7
"""Weight of the unpruned model beside the truth."""

_FACTS = ("left", "heads", "rounding", "refitted", "unfitted")
"""What is reported of all steps together."""


class GradualConfig(FloatScheduleConfig, AnswersConfig, BatchNormsConfig):
    """In how many steps a model is pruned, and how it is healed after each."""

    steps: int = Field(4, gt=1, le=100, description="Steps; ever less goes in each, on a cubic curve.")
    epochs: int = Field(1, gt=0, description="Passes over the data after each step.")
    last: int | None = Field(None, gt=0, description="Passes after the last step; as after the others if absent.")
    lr: float = Field(5e-4, gt=0, description="Highest learning rate.")

    @model_validator(mode="after")
    def _judged(self) -> Self:
        for setting in ("patience", "eval_every"):
            if setting in self.model_fields_set:
                raise ValueError(f"`{setting}` is about evaluations, which healing has none of: leave it out")
        return self


@dataclass(frozen=True)
class Healing:
    """What a model is healed with.

    Attributes:
        data: Name of the rows.
        target: Column of the truth; None to learn from the unpruned model alone.
        mask: What the setting says that names the input which tells padded positions.
    """

    data: str
    target: str | None
    mask: str


def gradually(
    config: GradualConfig,
    healing: Healing,
    job: Job,
    *,
    target: Target,
    whole: Any,
    cut: Callable[[Any, Target], Pruned],
) -> Pruned:
    """Prune in steps, healing after each; an interrupted try is continued.

    Args:
        config: The steps.
        healing: What the model is healed with.
        job: Names the rows.
        target: What shall be left in the end.
        whole: The module, in evaluation mode on the job's device.
        cut: Makes a smaller copy of a module.

    Raises:
        StageError: When a step cannot be cut, or the data lack the truth that they are asked for.
    """
    from modelpack.numerics.pruning import gradual

    batch_norms.expect(config, whole, job)
    healer = _Healer(config, healing, whole, job)

    def step(part: Any, keep: float, slack: float) -> tuple[Any, float, dict[str, Any]]:
        made = cut(part, replace(target, keep=keep, tolerance=max(target.tolerance, slack), whole=whole))
        facts = {"left": dict(made.left), "heads": list(made.heads), "rounding": dict(made.rounding)}
        facts |= {"refitted": list(made.refitted), "unfitted": dict(made.unfitted)}
        return made.module, made.fraction, facts

    wanted = gradual.fractions(target.keep, config.steps)
    done = gradual.prune(whole, wanted, step, healer.heal, job.scratch, alone=target.name == "latency")
    if done.resumed:
        job.note(f"continued after step {done.resumed} of an interrupted try")
    told = [{key: value for key, value in row.items() if key not in _FACTS} for row in done.rows]
    job.result("schedule", told)
    kept = ", ".join(f"{row['kept']:.1%}" for row in told)
    job.note(
        f"kept {kept} of the {target.words} in {config.steps} steps, healed after each: nothing is left to recover"
    )
    return _together(whole, done)


def _together(whole: Any, done: Progress) -> Pruned:
    """Say what all steps did to the whole model."""
    from modelpack.numerics.pruning import Pruned
    from modelpack.numerics.pruning.result import changes

    last = done.rows[-1]
    gone = [row["heads"][0] for row in done.rows]
    return Pruned(
        module=done.module,
        fraction=done.fraction,
        layers=changes(whole, done.module),
        left=last["left"],
        heads=(sum(gone), done.rows[0]["heads"][1]),
        rounding=last["rounding"],
        refitted=tuple(dict.fromkeys(path for row in done.rows for path in row["refitted"])),
        unfitted={path: reason for row in done.rows for path, reason in row["unfitted"].items()},
    )


@dataclass(frozen=True)
class _Healer:
    """Restores what a cut took, by the outputs of the whole model, and by the truth where that is asked for."""

    config: GradualConfig
    healing: Healing
    whole: Any
    job: Job

    def heal(self, student: Any, step: int, scratch: Path) -> dict[str, Any]:
        """Measure batch norms anew where that helps, then train; gives what to report."""
        from modelpack.numerics import training as loop
        from modelpack.numerics.pruning.surgery import twin
        from modelpack.numerics.randomness import chained

        job, device = self.job, loop.device(self.job.device)
        data = loop.Rows(job.data[self.healing.data].batches, job.inputs, self.healing.target)
        # A teacher's weights are laid out anew, but an interrupted try continues with the whole model as it was loaded.
        teacher = twin(self.whole)
        settled = batch_norms.settle(self.config, job, student, teacher, data)
        last = step == self.config.steps and self.config.last
        plan = replace(schedule(self.config), epochs=last or self.config.epochs)
        objective = self._objective(student, teacher, data)
        lesson = loop.Lesson(
            objective, data, None, plan, device, chained(job.seed, step), job.track, still=settled.still
        )
        lesson = remembering(self.config, job, lesson, job.source.id)
        trained = loop.train(student, lesson, scratch)
        remarks.answers(lesson, job)
        told = {"batch_norms": settled.word} if settled.norms else {}
        return {**told, "epochs": plan.epochs, "loss": trained.history[-1]["loss"]}

    def _objective(self, student: Any, teacher: Any, data: Rows) -> Imitation:
        from modelpack.numerics import distillation, masks
        from modelpack.numerics import training as loop

        device, target = loop.device(self.job.device), self.healing.target
        task = None
        if target is not None:
            task = distillation.task_for(data, teacher, "auto", output="", smoothing=0.0, device=device)
            if task is None:
                raise StageError(f"loss task needs the column '{target}', which the data lack", then="set target")
        mask = masks.chosen(self.healing.mask, self.job.inputs)
        wish = distillation.Wish(alpha=_TEACHER if task is not None else 1.0, mask=mask)
        return distillation.imitation(teacher, student, data, task, wish=wish, device=device)
