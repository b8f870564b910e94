"""The rows that show what the layers of a model read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelpack.numerics.fitting import Reading
    from modelpack.stage import Job

MASK = "Input that says which positions are real; auto: by its name; none: all positions are."
"""What the setting is that names it."""


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
    from modelpack.numerics import fitting
    from modelpack.numerics import rows as feeding
    from modelpack.numerics.quantization.calibration import masks

    source = job.data[data]
    padding = masks.padding(mask, job.inputs)
    if padding is not None:
        job.note(f"positions where '{padding}' is 0 did not count")
    return fitting.Reading(
        lambda: feeding.feeds(job.track(source.batches(), label="rows"), job.inputs, rows), padding, job.device
    )
