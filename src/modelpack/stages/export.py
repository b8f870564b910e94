"""From a torch model to an ONNX file that provably computes the same."""

from __future__ import annotations

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, stage


class ExportConfig(StageConfig):
    """Which operators to use, and how closely the result must follow torch."""

    opset: int = Field(20, ge=18, le=23, description="Version of the ONNX operators.")
    data: DataRef | None = Field(
        None, description="Rows to compare on; values within the declared ranges are made up when absent."
    )
    rows: int = Field(8, gt=0, le=4096, description="How many rows to compare on, at most.")
    atol: float = Field(1e-5, ge=0, description="Largest absolute difference from torch that is allowed.")
    rtol: float = Field(1e-3, ge=0, description="Allowed in addition: this fraction of the output's largest magnitude.")


@stage(
    version=1,
    accepts={Kind.TORCH},
    produces=Kind.ONNX,
    needs=("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
)
def export(config: ExportConfig, job: Job) -> None:
    """Write the model as ONNX and compare it with torch at every optimization level of onnxruntime."""
    from modelpack.numerics import export as exporting
    from modelpack.numerics import models, onnxfile, rows, runtime, tracing
    from modelpack.numerics.differences import Tolerance

    inputs, outputs = runtime.signature(job.source)
    described = job.source.read_json("signature.json")["outputs"]
    module = models.load(job.source)
    if config.data is None or config.data in job.synthetic:
        job.warn("the export was compared with torch on made-up inputs; name real ones with `data:`")
    batches = job.data[config.data].batches() if config.data is not None else None
    examples = rows.examples(batches, inputs, config.rows, job.seed)
    traced = tracing.traceable(examples[0], inputs, job.seed)
    exported = exporting.export(module, traced, inputs, described, config.opset)
    if exported.limits:
        job.warn(exporting.branches(exported))
    cases = exporting.cases(module, examples, outputs)
    largest = exporting.prove(
        exported,
        cases,
        Tolerance(config.atol, config.rtol),
        track=lambda levels: job.track(levels, len(runtime.LEVELS), "compare with torch"),
    )
    onnxfile.write(exported.model, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    job.metric("export_difference", largest)
    job.metric("opset", config.opset)
    job.result("compared", [case.shapes for case in cases])
