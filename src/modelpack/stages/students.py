"""Students: the model that a step reads, fewer layers of it, or a model of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from modelpack.errors import StageError
from modelpack.stages import remarks
from modelpack.stages.model import BuiltConfig, built
from modelpack.stages.training import TeacherConfig

if TYPE_CHECKING:
    from modelpack.stage import Job


class OwnStudent(BuiltConfig):
    """A model that is built by code of its own, as `model` is."""

    outputs: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names for what forward() returns; those of the teacher when absent."
    )


class StudentConfig(TeacherConfig):
    """Who learns."""

    student: OwnStudent | None = Field(
        None, description="A student of its own, as {factory, arguments, weights, outputs}; the model itself if absent."
    )
    keep_layers: int | tuple[int, ...] | None = Field(
        None,
        description="A student of fewer layers, which starts as the model without the others: how many stay, spread "
        "evenly, or the numbers of those that stay, from 0.",
    )

    @model_validator(mode="after")
    def _one_student(self) -> Self:
        if self.student is not None and self.keep_layers is not None:
            raise ValueError("`keep_layers` thins the model itself: leave it out, or leave `student` out")
        return self

    @property
    def shrinks(self) -> bool:
        """Whether the student is another model than the one that the step reads."""
        return self.student is not None or self.keep_layers is not None


def begin(config: StudentConfig, job: Job) -> Any:
    """Make the student, in evaluation mode on the job's device.

    Args:
        config: Says which.
        job: Its model is the student, or what the student is made of.

    Raises:
        StageError: When it cannot be built, or the model has no such layers.
    """
    from modelpack.numerics import models
    from modelpack.numerics.pruning import depth

    if config.student is None:
        student = models.load(job.source, job.device)
        if config.keep_layers is not None:
            feed = models.example(models.load(job.source), job.inputs, 2, job.seed, job.device)
            student = depth.thinned(student, feed, config.keep_layers).eval()
        return student
    return _own(config.student, job, config.teacher)


def _own(student: OwnStudent, job: Job, teacher: str) -> Any:
    try:
        module = built(student, job, job.inputs, student.outputs or _names(job, teacher))
    except StageError as error:
        then = error.then if error.where else "the student reads the teacher's inputs and gives its outputs"
        raise StageError(error.what, where=f"student {error.where}".rstrip(), then=then) from error
    return module.to(job.device)


def _names(job: Job, teacher: str) -> tuple[str, ...]:
    signature: dict[str, Any] = job.steps[teacher].read_json("signature.json")
    return tuple(signature["outputs"])


def end(config: StudentConfig, job: Job, student: Any) -> None:
    """Write the trained student."""
    from modelpack.numerics import models

    if config.shrinks:
        student = student.cpu()
        remarks.size(student, models.example(student, job.inputs, 2, job.seed), job)
    if config.student is None:
        models.save(student, job.out, like=job.source)
    else:
        models.renew(student, job.out)
