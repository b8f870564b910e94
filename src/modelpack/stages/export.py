"""From a torch model to an ONNX file that provably computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, stage

if TYPE_CHECKING:
    from modelpack.numerics.rows import Feed


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
    from modelpack.numerics import models, onnxfile, runtime
    from modelpack.numerics.differences import Tolerance

    inputs, outputs = runtime.signature(job.source)
    described = job.source.read_json("signature.json")["outputs"]
    module = models.load(job.source)
    examples = _examples(config, job)
    traced = exporting.traceable(examples[0], inputs, job.seed)
    exported = exporting.export(module, traced, inputs, described, config.opset)
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


def _examples(config: ExportConfig, job: Job) -> list[Feed]:
    """Gather inputs of several batch sizes: real rows where there are some, made-up ones otherwise."""
    from modelpack.numerics import export as exporting
    from modelpack.numerics import rows

    if config.data is None:
        job.warn("the export was compared with torch on made-up inputs; name real ones with `data:`")
        return exporting.invented(job.inputs, config.rows, job.seed)
    if config.data in job.synthetic:
        job.warn(f"the export was compared with torch on made-up inputs: '{config.data}' is random data")
    whole = next(rows.feeds(job.data[config.data].batches(), job.inputs, config.rows), None)
    if whole is None:
        from modelpack.errors import StageError

        raise StageError("the data have no rows to compare on", where=config.data)
    return exporting.portions(whole, job.inputs)
