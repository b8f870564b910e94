"""Fewer bits per weight, and per activation where data say how large activations become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from modelpack.artifact import Kind
from modelpack.stage import DataRef, Job, StageConfig, stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelpack.numerics.quantization.engine import Result
    from modelpack.numerics.rows import Feed

Operator = Literal["Conv", "Gemm", "MatMul", "Gather"]

_USES: dict[str, frozenset[Operator]] = {
    "static": frozenset({"Conv", "Gemm", "MatMul", "Gather"}),
    "dynamic": frozenset({"Gemm", "MatMul", "Gather"}),
    "float16": frozenset({"Conv", "Gemm", "MatMul", "Gather"}),
}


class QuantizeConfig(StageConfig):
    """Which numbers become smaller, and how their ranges are found."""

    method: Literal["static", "dynamic", "float16"] = Field(
        "static",
        description="static: 8-bit weights and activations, calibrated on data; dynamic: 8-bit weights, activations "
        "rounded at run time; float16: half precision, for accelerators.",
    )
    data: DataRef | None = Field(
        None, description="Calibration rows, which the result is also compared on; static needs them."
    )
    rows: int = Field(256, gt=0, description="How many calibration rows to read, at most.")
    ranges: Literal["minmax", "percentile"] = Field(
        "minmax", description="How static finds the range of an activation: all values, or nearly all."
    )
    percentile: float = Field(
        99.999, gt=50, le=100, description="With `ranges: percentile`, the share of values inside the range."
    )
    reconstruct: bool = Field(
        False,
        description="With static: fit the 8-bit weights and biases to the float layers' outputs, one layer after the "
        "other. Same size and speed, closer outputs, about a minute more for a network of 50 layers.",
    )
    reconstruct_rows: int = Field(
        128, ge=8, description="How many calibration rows `reconstruct` reads, at most; it keeps them in memory."
    )
    operators: tuple[Operator, ...] | None = Field(
        None, min_length=1, description="Quantize only these operators; chosen by the kind of network when absent."
    )
    exclude: tuple[str, ...] = Field((), description="Names of layers to leave alone; * and ? match anything.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "static" and self.data is None:
            raise ValueError("static quantization calibrates on data: add `data:`, or use `method: dynamic`")
        if self.reconstruct and self.method != "static":
            raise ValueError(f"`reconstruct` fits static quantization, not '{self.method}'; leave it out")
        wrong = sorted(set(self.operators or ()) - _USES[self.method])
        if wrong:
            able = ", ".join(sorted(_USES[self.method]))
            raise ValueError(f"'{self.method}' cannot quantize {', '.join(wrong)}; it can: {able}")
        return self


@stage(
    version=1,
    accepts={Kind.ONNX},
    produces=Kind.ONNX,
    needs=("onnx", "onnxruntime", "onnxconverter-common", "torch"),
    marks={"quantized"},
    refuses={"quantized"},
)
def quantize(config: QuantizeConfig, job: Job) -> None:
    """Store weights in 8 bits (or 16), and compute with them; every layer left out is listed with the reason."""
    from modelpack.numerics import onnxfile, rows, runtime
    from modelpack.numerics.quantization import engine

    inputs, _ = runtime.signature(job.source)
    before = onnxfile.read(job.source.file(onnxfile.NAME))
    settings = engine.Settings(config.method, config.operators, config.exclude, config.ranges, config.percentile)

    def passes(label: str, limit: int = config.rows) -> Iterator[Feed]:
        assert config.data is not None
        yield from job.track(rows.feeds(job.data[config.data].batches(), inputs, limit), label=label)

    fit = engine.Fit(
        feeds=lambda: passes("read rows to fit on", min(config.rows, config.reconstruct_rows)),
        seed=job.seed,
        track=lambda layers: job.track(layers, len(layers), "reconstruct layers"),
    )
    _warn(config, job)
    made = engine.quantize(before, settings, passes, job.device, fit if config.reconstruct else None)
    onnxfile.write(made.model, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    _report(made, job)
    feeds: Iterable[Feed] = (
        passes("compare outputs") if config.data is not None else rows.examples(None, inputs, 16, job.seed)
    )
    figures = engine.fidelity(before, made.model, feeds, inputs, job.device)
    job.result("fidelity", figures)
    first = figures[before.graph.output[0].name]
    for name in ("sqnr_db", "cosine", "agreement"):
        if name in first:
            job.metric(f"quantize_{name}", first[name])


def _warn(config: QuantizeConfig, job: Job) -> None:
    if config.data in job.synthetic and config.data is not None:
        job.warn(f"calibrated on made-up rows: '{config.data}' is random data, its ranges are not those of real inputs")
    if config.data is None:
        job.warn("the quantized model was compared with the float one on made-up inputs; name real ones with `data:`")
    if config.method == "float16" and job.device == "cpu":
        job.warn("float16 halves the file, but most processors compute it slower than float32: meant for accelerators")
    if config.method == "dynamic":
        job.note("dynamic ranges span a whole batch: a row's outputs change a little with the rows beside it")


def _report(made: Result, job: Job) -> None:
    """Say how many layers were quantized, and which were not."""
    for note in made.notes:
        job.note(note)
    left = [layer for layer in made.layers if not layer.quantized]
    job.metric("quantizable_layers", len(made.layers))
    job.metric("quantized_layers", len(made.layers) - len(left))
    job.metric("quantize_shrink", made.shrunk)
    job.result("layers", [layer.to_json() for layer in made.layers])
    if made.gains:
        _report_gains(made, job)
    if made.floating:
        names = ", ".join(made.floating)
        job.warn(f"these layers have 8-bit weights, but onnxruntime computes them in floating point: {names}")
    if left:
        shown = "; ".join(f"{layer.name}: {layer.reason}" for layer in left[:4])
        more = f"; and {len(left) - 4} more" if len(left) > 4 else ""
        job.warn(f"{len(left)} of {len(made.layers)} layers were not quantized: {shown}{more}")


def _report_gains(made: Result, job: Job) -> None:
    """Say which layers reconstruction brought closer to the float ones."""
    changed = [gain for gain in made.gains if gain.changed] if made.kept else []
    job.metric("quantize_corrected_layers", len(changed))
    job.result("reconstruction", [gain.to_json() for gain in made.gains])
    if not made.kept:
        job.warn("reconstruction brought each layer closer to the float one, but not the model: it was left out")
