"""A graph rewritten once, offline, into one that computes the same with fewer operators."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelpack.artifact import Kind
from modelpack.errors import MissingError, StageError
from modelpack.stage import DataRef, Job, Outside, StageConfig, stage


class OptimizeConfig(StageConfig):
    """Which tool rewrites the graph, and how closely the outputs must stay the same."""

    tool: Literal["onnxruntime", "onnxslim"] = Field(
        "onnxruntime", description="What rewrites it; onnxslim needs the extra modelpack[slim]."
    )
    data: DataRef | None = Field(
        None, description="Rows to compare on; values within the declared ranges are made up when absent."
    )
    rows: int = Field(8, gt=0, le=4096, description="How many rows to compare on, at most.")
    atol: float = Field(1e-5, ge=0, description="Largest absolute difference that is allowed.")
    rtol: float = Field(1e-3, ge=0, description="Allowed in addition: this fraction of the output's largest magnitude.")


def _preflight(config: OptimizeConfig, _outside: Outside) -> None:
    from importlib.util import find_spec

    if config.tool == "onnxslim" and find_spec("onnxslim") is None:
        raise MissingError("onnxslim is not installed", then="pip install 'modelpack[slim]'")


@stage(
    version=1,
    accepts={Kind.ONNX},
    produces=Kind.ONNX,
    needs=("onnx", "onnxruntime", "onnxslim"),
    refuses={"quantized", "finished"},
    preflight=_preflight,
)
def optimize(config: OptimizeConfig, job: Job) -> None:
    """Fold constants and fuse operators offline; refused if the outputs move."""
    from modelpack.numerics import graph, onnxfile, prediction, rows, runtime
    from modelpack.numerics import optimize as optimizing
    from modelpack.numerics.differences import Tolerance

    inputs, _ = prediction.signature(job.source)
    before = onnxfile.read(job.source.file(onnxfile.NAME))
    if graph.is_quantized(before):
        raise StageError("the model is quantized already", then="optimize before quantize, or leave it out")
    if config.data is None or config.data in job.synthetic:
        job.warn("the optimized graph was compared on made-up inputs; name real ones with `data:`")
    batches = job.data[config.data].batches() if config.data is not None else None
    feeds = rows.examples(batches, inputs, config.rows, job.seed)
    after = optimizing.TOOLS[config.tool](before)
    largest = optimizing.prove(
        before,
        after,
        feeds,
        Tolerance(config.atol, config.rtol),
        track=lambda levels: job.track(levels, len(runtime.LEVELS), "compare outputs"),
    )
    onnxfile.write(after, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    job.metric("optimize_difference", largest)
    job.metric("nodes_before", len(before.graph.node))
    job.metric("nodes_after", len(after.graph.node))
    job.result("operators", graph.operators(after))
