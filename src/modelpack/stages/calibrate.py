"""How large activations become on real rows, measured once for any number of quantizations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.errors import listed
from modelpack.stage import DataRef, Job, StageConfig, stage
from modelpack.stages.reading import Mask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelpack.numerics.quantization.calibration.record import Calibration
    from modelpack.numerics.rows import Feed


class CalibrateConfig(StageConfig):
    """Which activations to look at, on which rows."""

    data: DataRef = Field(description="Rows like those that the model will meet; labels are not needed.")
    rows: int = Field(256, gt=0, description="How many of them to read, at most.")
    histograms: bool = Field(
        True,
        description="Count all values, which `ranges:` other than minmax need; else only the smallest and largest.",
    )
    operators: tuple[Literal["Conv", "ConvTranspose", "Gemm", "MatMul"], ...] | None = Field(
        None,
        min_length=1,
        description="Look at the activations of these operators; by the kind of network when absent.",
    )
    mask: Mask = "auto"
    equalize: bool = Field(
        False,
        description="Even out the ranges of channels between layers first (cross-layer), as `quantize` then does too.",
    )
    smooth: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Move this share of the activations' outliers into the weights first (SmoothQuant), as `quantize` "
        "then does too; reads the rows twice.",
    )


@stage(
    version=2,
    accepts={Kind.ONNX},
    produces=Kind.CALIBRATION,
    needs=("onnx", "onnxruntime", "torch"),
    refuses={"quantized"},
)
def calibrate(config: CalibrateConfig, job: Job) -> None:
    """Measure the ranges and histograms of activations, in one pass and bounded memory."""
    from modelpack.numerics import onnxfile, prediction, rows
    from modelpack.numerics.quantization.calibrate import Asked
    from modelpack.numerics.quantization.calibrate import calibrate as measure
    from modelpack.numerics.quantization.calibration import record

    if config.data in job.synthetic:
        job.warn(f"calibrated on made-up rows: '{config.data}' is random data, its ranges are not those of real inputs")
    inputs, _ = prediction.signature(job.source)
    model = onnxfile.read(job.source.file(onnxfile.NAME))

    def read(label: str) -> Iterable[Feed]:
        return job.track(rows.feeds(job.data[config.data].batches(), inputs, config.rows), label=label)

    asked = Asked(config.operators, config.histograms, config.mask, config.equalize, config.smooth)
    found = measure(model, job.source.id, asked, read, inputs, device=job.device)
    record.write(found, job.out)
    _report(found, job)


def _report(found: Calibration, job: Job) -> None:
    """Say how much was measured, and what will make poor ranges."""
    job.metric("calibrated_tensors", len(found.tensors))
    job.metric("calibrated_rows", found.rows)
    job.note(f"measured {len(found.tensors)} activations on {found.rows} rows")
    if found.mask:
        job.note(f"positions where '{found.mask}' is 0 did not count")
    hidden = {name: seen.left_out for name, seen in found.tensors.items() if seen.left_out}
    if hidden:
        job.note(f"{sum(hidden.values()):,} numbers that hide positions did not count, in {listed(hidden, 4)}")
    if found.rows == 1:
        job.warn("calibrated on one row: the ranges of other rows will differ, and what exceeds them is clipped")
    constant = [name for name, seen in found.tensors.items() if seen.low >= seen.high]
    if constant:
        job.warn(f"activations that never change have no range to measure: {listed(constant, 4)}")
