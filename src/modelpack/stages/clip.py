"""The stage that cuts off outliers of weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.bind import Whole
from modelpack.stage import Job, StageConfig, stage
from modelpack.stages import remarks


class ClipConfig(StageConfig):
    """What is an outlier."""

    bits: Annotated[Literal[8, 4], Whole] = Field(
        8,
        description="Bits of the grid that the weights will be rounded to. With 8 and a grid for each channel there is "
        "next to nothing to gain.",
    )
    percentile: float | None = Field(
        None,
        ge=50,
        lt=100,
        description="Per cent of the magnitudes that stay as they are; if absent, weights are cut where the squared "
        "error of rounding and cutting is smallest.",
    )
    scope: Literal["channel", "layer"] = Field(
        "channel", description="Whether each output channel is cut for itself, or the layer as a whole."
    )
    exclude: tuple[str, ...] = Field((), description="Glob patterns of module paths to leave alone.")


@stage(version=2, accepts={Kind.TORCH}, produces=Kind.TORCH, needs=("torch",), refuses={"quantized"})
def clip(config: ClipConfig, job: Job) -> None:
    """Cut off outliers of weights, so that rounding the others to few bits loses less."""
    from modelpack.numerics import clipping, models

    module = models.load(job.source, job.device)
    done, left = clipping.clip(
        module, config.bits, config.percentile, config.exclude, channels=config.scope == "channel"
    )
    models.save(module, job.out, like=job.source)
    remarks.zeros(job)
    power, before, after = (sum(getattr(item, name) for item in done) for name in ("power", "before", "after"))
    cut, weights = sum(item.count for item in done), sum(item.weights for item in done)
    job.metric("clipped_weights", cut)
    job.metric("source_weights_sqnr_db", clipping.ratio_db(power, before))
    job.metric("weights_sqnr_db", clipping.ratio_db(power, after))
    job.result("layers", [item.to_json() for item in done])
    gain = clipping.ratio_db(power, after) - clipping.ratio_db(power, before)
    tell = job.note if gain >= 0 else job.warn
    tell(
        f"cut {cut} of {weights} weights in {sum(item.count > 0 for item in done)} of {len(done)} layers: rounded to "
        f"{config.bits} bits, the weights have {gain:+.1f} dB of signal to noise against before"
    )
    remarks.left_alone(left, job)
