"""The rows that show what the layers of a model read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from modelpack.numerics.fitting import Reading
    from modelpack.stage import Job

Mask = Annotated[
    str,
    Field(
        min_length=1,
        description="The input that is 1 at real positions and 0 at padded ones, which do not count; auto takes the "
        "matrix whose name says so, none lets all positions count.",
    ),
]
"""A setting that names this input."""


def reading(data: str, mask: str, rows: int, job: Job) -> Reading:
    """Read some rows, again from the start as often as it takes.

    Args:
        data: Name of the rows.
        mask: What the setting says.
        rows: How many, at most.
        job: Where they are.

    Raises:
        StageError: When there is no such mask.
    """
    from modelpack.numerics import fitting, masks
    from modelpack.numerics import rows as feeding

    source = job.data[data]
    padding = masks.chosen(mask, job.inputs)
    if padding is not None:
        job.note(f"positions where '{padding}' is 0 did not count")
    return fitting.Reading(
        lambda: feeding.feeds(job.track(source.batches(), label="rows"), job.inputs, rows), padding, job.device
    )
