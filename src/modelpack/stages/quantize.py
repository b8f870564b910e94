"""Fewer bits per weight, and per activation where data say how large activations become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpack.artifact import Kind
from modelpack.bind import Whole
from modelpack.errors import MissingError, StageError
from modelpack.stage import Assumption, CalibrationRef, DataRef, Implied, Job, Outside, StageConfig, stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.numerics.checks import Subject
    from modelpack.numerics.quantization.calibration.record import Calibration
    from modelpack.numerics.quantization.engine import Result
    from modelpack.numerics.quantization.settings import Budget, Measure
    from modelpack.numerics.rows import Feed

Method = Literal["static", "dynamic", "weight_only", "float16", "bfloat16"]
Operator = Literal["Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"]

_STATIC = frozenset({"static"})
_HALF = frozenset({"float16", "bfloat16"})
_ONLY_FOR: dict[str, frozenset[str]] = {
    **dict.fromkeys(("calibration", "ranges", "percentile", "equalize", "smooth"), _STATIC),
    **dict.fromkeys(("correction", "correction_rows", "wide", "target", "portable", "budget"), _STATIC),
    **dict.fromkeys(("bits", "group", "rounding", "form"), frozenset({"weight_only"})),
    "keep_operators": _HALF,
    "backend": frozenset({"static", "dynamic"}),
}
"""Setting → methods that it fits."""

_BACKENDS: dict[str, dict[str, frozenset[str]]] = {
    "ort": {"static": frozenset({"operators", "ranges", "percentile"}), "dynamic": frozenset({"operators"})},
    "nncf": {"static": frozenset()},
}
"""Other project's quantizer → method → settings that it knows, beside those that choose rows and layers."""

_EVERY_BACKEND = frozenset({"method", "data", "rows", "exclude", "backend", "verify", "allow_slower"})

_OPERATORS: dict[str, frozenset[Operator]] = {
    "static": frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"}),
    "dynamic": frozenset({"Gemm", "MatMul", "Gather"}),
}
"""Method → operators that it can quantize, where not all."""


class QualityBudget(BaseModel):
    """How close the quantized model must stay to the float one: exactly one of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sqnr_db: float | None = Field(None, gt=0, description="Signal-to-noise ratio of the first output, at least.")
    agreement: float | None = Field(None, gt=0, le=1, description="Share of rows with the same answer, at least.")
    accuracy_drop: float | None = Field(None, ge=0, le=1, description="Accuracy lost, at most; needs labels.")
    labels: str = Field("label", min_length=1, description="Key of the labels in the data, for accuracy_drop.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.sqnr_db, self.agreement, self.accuracy_drop)) != 1:
            raise ValueError("give one of sqnr_db, agreement and accuracy_drop")
        return self


class QuantizeConfig(StageConfig):
    """Which numbers become smaller, and how their ranges are found."""

    method: Method = Field(
        "static",
        description="static: 8-bit weights and activations, calibrated on data; dynamic: 8-bit weights, activations "
        "rounded at run time; weight_only: 8- or 4-bit weights, float activations; float16, bfloat16: half precision.",
    )
    data: DataRef | None = Field(
        None, description="Calibration rows, which the result is also compared on; static needs them."
    )
    rows: int = Field(256, gt=0, description="How many calibration rows to read, at most.")
    calibration: CalibrationRef | None = Field(
        None, description="With static: the calibrate step to take ranges from; one is made when absent."
    )
    ranges: Literal["minmax", "percentile", "entropy", "mse"] = Field(
        "minmax", description="How static finds the range of an activation: all values, or what serves nearly all best."
    )
    percentile: float = Field(
        99.999, gt=50, le=100, description="With `ranges: percentile`, the share of values inside the range."
    )
    equalize: bool = Field(
        False, description="With static: even out the ranges of channels between layers first (cross-layer)."
    )
    smooth: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="With static: move this share of the activations' outliers into the weights (SmoothQuant); 0.5 is "
        "usual, for transformers.",
    )
    correction: Literal["none", "bias", "sequential", "rounding", "adaround"] = Field(
        "none",
        description="With static, what brings layers back to the float ones' outputs, at the same size and speed: "
        "bias: biases, all at once; sequential: biases, layer after layer; rounding: weights and biases, layer after "
        "layer; adaround: the same with learned rounding, slowest.",
    )
    correction_rows: int = Field(
        128, ge=8, description="How many calibration rows `correction` reads, at most; it keeps them in memory."
    )
    wide: tuple[str, ...] = Field((), description="With static: names of layers whose activations take 16 bits.")
    target: Literal["auto", "vnni", "amx", "avx2", "neon", "cuda"] = Field(
        "auto", description="With static: the hardware it shall run on; auto is this machine's."
    )
    portable: bool = Field(
        False,
        description="With static: narrow the weights of the layers that would overflow 16 bits on processors with AVX2 "
        "and no VNNI, so that all machines give the same.",
    )
    budget: QualityBudget | None = Field(
        None,
        description="With static: stay this close to the float model on the rows of `data`. As many layers as that "
        "takes are kept in float, those that cost least time on this machine.",
    )
    bits: Annotated[Literal[8, 4], Whole] = Field(4, description="With weight_only: bits of a weight.")
    group: Annotated[Literal[16, 32, 64, 128, 256], Whole] = Field(
        32, description="With weight_only: weights that share one scale."
    )
    rounding: Literal["nearest", "hqq", "gptq"] | None = Field(
        None,
        description="With weight_only, how weights are rounded: nearest; hqq: on grids that let outliers go; gptq: by "
        "what the layers' inputs make of each error, which needs data. When absent, nearest for 8 bits, and for 4 bits "
        "gptq where there are data and hqq where there are none.",
    )
    form: Literal["nbits", "qdq"] = Field(
        "nbits", description="With weight_only: onnxruntime's MatMulNBits, or standard DequantizeLinear in blocks."
    )
    operators: tuple[Operator, ...] | None = Field(
        None, min_length=1, description="Quantize only these operators; chosen by the kind of network when absent."
    )
    exclude: tuple[str, ...] = Field((), description="Names of layers to leave alone; * and ? match anything.")
    keep_operators: tuple[str, ...] = Field(
        (), description="With float16 and bfloat16: operators that stay float32, such as Softmax."
    )
    backend: Literal["builtin", "ort", "nncf"] = Field(
        "builtin", description="Whose quantizer: this one, onnxruntime's or NNCF's, for comparison."
    )
    verify: bool = Field(True, description="Examine the result for silent failures, and refuse it where one is found.")
    allow_slower: bool = Field(False, description="Accept a result that is slower than the float model.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._fits_backend()
        for name in sorted(self.model_fields_set):
            fits = _ONLY_FOR.get(name)
            if fits is not None and self.method not in fits:
                raise ValueError(f"`{name}` fits {' and '.join(sorted(fits))}, not '{self.method}'; leave it out")
        if self.portable and self.target in ("neon", "cuda"):
            raise ValueError(f"`portable` is about x86 processors, `target: {self.target}` is none; leave one out")
        if self.method == "static" and self.data is None:
            raise ValueError("static quantization calibrates on data: add `data:`, or use `method: dynamic`")
        if self.rounding == "gptq" and self.data is None:
            raise ValueError("gptq looks at the layers' inputs on data: add `data:`, or use `rounding: hqq`")
        able = _OPERATORS.get(self.method)
        wrong = sorted(set(self.operators or ()) - able) if able else []
        if able and wrong:
            known = ", ".join(sorted(able))
            raise ValueError(f"'{self.method}' cannot quantize {', '.join(wrong)}; it can: {known}")
        return self

    def _fits_backend(self) -> None:
        if self.backend == "builtin":
            return
        methods = _BACKENDS[self.backend]
        if self.method not in methods:
            raise ValueError(f"`backend: {self.backend}` can do {' and '.join(methods)}, not '{self.method}'")
        strange = sorted(self.model_fields_set - methods[self.method] - _EVERY_BACKEND)
        if strange:
            raise ValueError(f"`backend: {self.backend}` does not know `{strange[0]}`; leave it out")
        if self.ranges == "mse":
            raise ValueError(
                f"`backend: {self.backend}` does not know `ranges: mse`; it has minmax, percentile, entropy"
            )


def _preflight(config: QuantizeConfig, _outside: Outside) -> None:
    from importlib.util import find_spec

    if config.backend == "nncf" and find_spec("nncf") is None:
        raise MissingError("nncf is not installed", then="pip install 'modelpack[peers]'")


def _assumed(config: QuantizeConfig, device: str) -> Iterator[Assumption]:
    """Say which integers this machine wants, where no target is named."""
    if config.method == "static" and config.backend == "builtin" and config.target == "auto":
        from modelpack.numerics.quantization import hardware

        found = hardware.profile(config.target, device)
        yield Assumption("integers", found.integers, f"{found.reason} ({found.name} here)")


def _implied(config: QuantizeConfig) -> Implied | None:
    """Calibrate first, where no step did."""
    if config.method != "static" or config.backend != "builtin" or config.calibration is not None:
        return None
    settings = {
        "data": config.data,
        "rows": config.rows,
        "histograms": config.ranges != "minmax",
        "operators": [name for name in config.operators or () if name != "Gather"] or None,
        "equalize": config.equalize,
        "smooth": config.smooth,
    }
    return Implied("calibrate", settings, "calibration")


@stage(
    version=2,
    accepts={Kind.ONNX},
    produces=Kind.ONNX,
    needs=("onnx", "onnxruntime", "onnxconverter-common", "torch", "nncf"),
    marks={"quantized"},
    refuses={"quantized"},
    preflight=_preflight,
    implies=_implied,
    assumes=_assumed,
)
def quantize(config: QuantizeConfig, job: Job) -> None:
    """Store weights in 16, 8 or 4 bits, and compute with them; every layer left out is listed with the reason."""
    from modelpack.numerics import checks, onnxfile, rows, runtime
    from modelpack.numerics.quantization import engine
    from modelpack.numerics.quantization.settings import Evidence, Settings

    inputs, _ = runtime.signature(job.source)
    before = onnxfile.read(job.source.file(onnxfile.NAME))
    settings = Settings(
        method=config.method,
        backend=config.backend,
        operators=config.operators,
        exclude=config.exclude,
        ranges=config.ranges,
        percentile=config.percentile,
        equalize=config.equalize,
        smooth=config.smooth,
        correction=config.correction,
        correction_rows=config.correction_rows,
        wide=config.wide,
        target=config.target,
        portable=config.portable,
        bits=config.bits,
        group=config.group,
        rounding=config.rounding or _rounding(config),
        form=config.form,
        keep_operators=config.keep_operators,
        budget=_budget(config),
    )

    def read(label: str, limit: int | None = None) -> Iterator[Feed]:
        if config.data is None:
            return
        most = config.rows if limit is None else min(limit, config.rows)
        yield from job.track(rows.feeds(job.data[config.data].batches(), inputs, most), label=label)

    def labelled(label: str) -> Iterator[tuple[Feed, NDArray[np.generic]]]:
        assert config.data is not None
        assert config.budget is not None
        pairs = rows.labelled(job.data[config.data].batches(), inputs, config.rows, config.budget.labels)
        yield from job.track(pairs, label=label)

    def track(names: Sequence[str], label: str) -> Iterable[str]:
        return job.track(names, len(names), label)

    _warn(config, job)
    evidence = Evidence(read, _calibration(config, job), job.seed, job.device, track, labelled)
    made = engine.quantize(before, settings, evidence)
    onnxfile.write(made.outcome.model, job.out)
    (job.out / "signature.json").write_bytes(job.source.file("signature.json").read_bytes())
    _report(made, job)
    feeds: Iterable[Feed] = (
        read("compare outputs") if config.data is not None else rows.examples(None, inputs, 16, job.seed)
    )
    figures = engine.fidelity(before, made.outcome.model, feeds, inputs, job.device)
    job.result("fidelity", figures)
    first = figures[before.graph.output[0].name]
    for name in ("sqnr_db", "cosine", "agreement"):
        if name in first:
            job.metric(f"quantize_{name}", first[name])
    if config.verify:
        few = rows.examples(None, inputs, 8, job.seed) if config.data is None else list(read("examine", 8))
        made_up = config.data is None or config.data in job.synthetic
        _examine(
            checks.Subject(made.outcome.model, inputs, few, before, job.device, made_up=made_up), made, config, job
        )


def _examine(subject: Subject, made: Result, config: QuantizeConfig, job: Job) -> None:
    """Look for silent failures in the result; those of other projects' quantizers are shown as they are.

    Raises:
        StageError: When one is found.
    """
    from modelpack.numerics import checks
    from modelpack.numerics.quantization import engine

    # The method itself says which layers overflow, and every layer that was left out is listed with its reason.
    skip = {"saturation", *({"speed"} if config.allow_slower else ())}
    # Methods that keep activations in floats are chosen for their bytes.
    tolerated = {"coverage"} if config.method in ("static", "dynamic") else {"coverage", "speed"}
    if config.backend != "builtin":
        tolerated = set(checks.CHECKS)
    found = checks.examine(subject, skip=skip, track=lambda names: job.track(names, len(names), "examine"))
    job.result("checks", [item.to_json() for item in found])
    for text in checks.accept(found, tolerated, {"size": engine.left_out(made.layers)}):
        job.warn(text)


def _calibration(config: QuantizeConfig, job: Job) -> Calibration | None:
    """Read the calibration that the settings name.

    Raises:
        StageError: When it is damaged, or is another model's.
    """
    from modelpack.numerics.quantization.calibration import record

    if config.calibration is None:
        return None
    artifact = job.steps[config.calibration]
    found = record.read(artifact.file(record.FACTS), artifact.file(record.ARRAYS))
    if found.model != job.source.id:
        raise StageError(
            f"'{config.calibration}' calibrated another model than the one to quantize",
            where="calibration",
            then="let both steps read the same step, or leave `calibration:` out",
        )
    return found


def _budget(config: QuantizeConfig) -> Budget | None:
    """Read the one limit that the budget gives."""
    from modelpack.numerics.quantization.settings import Budget

    if config.budget is None:
        return None
    names: tuple[Measure, ...] = ("sqnr_db", "agreement", "accuracy_drop")
    given = ((name, getattr(config.budget, name)) for name in names)
    return next(Budget(name, limit) for name, limit in given if limit is not None)


def _rounding(config: QuantizeConfig) -> Literal["nearest", "hqq", "gptq"]:
    """Choose what fits the bits and the data."""
    if config.bits == 8:
        return "nearest"
    return "gptq" if config.data is not None else "hqq"


def _warn(config: QuantizeConfig, job: Job) -> None:
    if config.data in job.synthetic and config.method != "static":
        job.warn(f"compared with the float model on made-up rows: '{config.data}' is random data")
    if config.data is None:
        job.warn("the quantized model was compared with the float one on made-up inputs; name real ones with `data:`")
    if config.method == "float16" and job.device == "cpu":
        job.warn("float16 halves the file, but most processors compute it slower than float32: meant for accelerators")
    if config.method == "dynamic":
        job.note("dynamic ranges span a whole batch: a row's outputs change a little with the rows beside it")


def _report(made: Result, job: Job) -> None:
    """Say what the method has to tell, how many layers were quantized, and which were not."""
    left = [layer for layer in made.layers if not layer.quantized]
    job.metric("quantizable_layers", len(made.layers))
    job.metric("quantized_layers", len(made.layers) - len(left))
    job.metric("quantize_shrink", made.shrunk)
    job.result("layers", [layer.to_json() for layer in made.layers])
    for name, figure in made.outcome.metrics.items():
        job.metric(name, figure)
    for name, value in made.outcome.results.items():
        job.result(name, value)
    for note in made.outcome.notes:
        job.note(note)
    for warning in made.outcome.warnings:
        job.warn(warning)
    if left:
        shown = "; ".join(f"{layer.name}: {layer.reason}" for layer in left[:4])
        more = f"; and {len(left) - 4} more" if len(left) > 4 else ""
        job.warn(f"{len(left)} of {len(made.layers)} layers were not quantized: {shown}{more}")
