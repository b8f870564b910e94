"""Whether batch norms measure their statistics anew before a model is healed: the setting, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from modelpack.stage import Job, StageConfig

if TYPE_CHECKING:
    from modelpack.numerics.training import Rows, Settled


class BatchNormsConfig(StageConfig):
    """What becomes of the statistics of batch norms."""

    batch_norm: Literal["auto"] | bool = Field(
        "auto",
        description="Measure the statistics of batch norms anew before training. If false they stay as they are, in "
        "training too; auto does what brings the outputs closer to the teacher's: few rows, or unlike those that the "
        "model was trained on, give bad statistics.",
    )


def expect(config: BatchNormsConfig, module: Any, job: Job) -> None:
    """Warn where statistics shall be measured that the model has none of."""
    from modelpack.numerics import training

    if config.batch_norm is True and not training.batch_norms(module):
        job.warn("`batch_norm: true` does nothing: the model has no batch norms")


def settle(config: BatchNormsConfig, job: Job, student: Any, teacher: Any, data: Rows) -> Settled:
    """Do what the setting says.

    Args:
        config: The setting.
        job: Where progress is told.
        student: The model that is to be healed, in evaluation mode on the job's device.
        teacher: What it should give, likewise.
        data: Rows that the statistics are of.

    Raises:
        StageError: When the student cannot run on the rows.
    """
    from modelpack.numerics import training

    anew = None if config.batch_norm == "auto" else config.batch_norm
    return training.settle(student, teacher, training.reader(data, training.device(job.device), job.track), anew=anew)
