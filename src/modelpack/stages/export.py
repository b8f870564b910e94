"""From a torch model to an ONNX file that provably computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from modelpack.numerics.checks import Subject
    from modelpack.numerics.differences import Case
    from modelpack.numerics.export import Exported
    from modelpack.numerics.fake_quantization.twin import Quantized


class ExportConfig(StageConfig):
    """Which operators to use, and how closely the result must follow torch."""

    opset: int = Field(20, ge=18, le=23, description="Version of the ONNX operators.")
    data: DataRef | None = Field(
        None, description="Rows to compare on; values within the declared ranges are made up when absent."
    )
    rows: int = Field(8, gt=0, le=4096, description="How many rows to compare on, at most.")
    atol: float = Field(1e-5, ge=0, description="Largest absolute difference from torch that is allowed.")
    rtol: float = Field(
        1e-3,
        ge=0,
        description="Allowed in addition: this fraction of the output's largest magnitude. A model trained to be "
        "quantized is held to steps of its grids instead: 99.9 % of the values within one.",
    )
    verify: bool = Field(True, description="Examine the result for silent failures, and refuse it where one is found.")


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.ONNX,
    needs=("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
)
def export(config: ExportConfig, job: Job) -> None:
    """Write the model as ONNX and compare it with torch at every optimization level of onnxruntime."""
    from modelpack.numerics import checks, models, onnxfile, prediction, rows, tracing
    from modelpack.numerics import export as exporting
    from modelpack.numerics.differences import Tolerance
    from modelpack.numerics.fake_quantization.twin import Quantized

    inputs, outputs = prediction.signature(job.source)
    described = job.source.read_json("signature.json")["outputs"]
    module = models.load(job.source)
    if config.data is None or config.data in job.synthetic:
        job.warn("the export was compared with torch on made-up inputs; name real ones with `data:`")
    batches = job.data[config.data].batches() if config.data is not None else None
    examples = rows.examples(batches, inputs, config.rows, job.seed)
    traced = tracing.traceable(examples[0], inputs, job.seed)
    floating = module.floating if isinstance(module, Quantized) else module
    exported = exporting.export(floating, traced, inputs, described, config.opset)
    if exported.limits:
        job.warn(exporting.branches(exported))
    cases = exporting.cases(module, examples, outputs)
    if isinstance(module, Quantized):
        model, largest = _quantized(exported, module, cases, job)
    else:
        model = exported.model
        largest = exporting.prove(exported, cases, Tolerance(config.atol, config.rtol), track=_levels(job))
    onnxfile.write(model, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    job.metric("export_difference", largest)
    job.metric("opset", config.opset)
    job.result("compared", [case.shapes for case in cases])
    if config.verify:
        made_up = config.data is None or config.data in job.synthetic
        _examine(checks.Subject(model, inputs, examples, made_up=made_up), job)


def _examine(subject: Subject, job: Job) -> None:
    """Look for what exporters get wrong; the comparison with torch covers the optimization levels.

    Raises:
        StageError: When something is found.
    """
    from modelpack.numerics import checks

    found = checks.examine(subject, skip={"levels", "size", "correction", "collapse", "saturation", "speed"})
    job.result("checks", [item.to_json() for item in found])
    for text in checks.accept(found):
        job.warn(text)


def _quantized(exported: Exported, module: Quantized, cases: Sequence[Case], job: Job) -> tuple[Any, float]:
    """Write the grids that a model was trained on into its graph, and prove that both round alike."""
    from modelpack.numerics.qat import agreement, writing

    model = writing.write(exported, module)
    found = agreement.prove(model, module, cases, _levels(job))
    job.metric("export_lsb_share", found.share)
    return model, found.largest


def _levels(job: Job) -> Callable[[Iterable[str]], Iterable[str]]:
    from modelpack.numerics import runtime

    return lambda levels: job.track(levels, len(runtime.LEVELS), "compare with torch")
