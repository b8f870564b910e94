"""What a quantization can be asked for, and which settings fit which method."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelpack.bind import Whole
from modelpack.device import Target
from modelpack.stage import CalibrationRef, DataRef, StageConfig

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

_OPERATORS: dict[str, frozenset[Operator]] = {"dynamic": frozenset({"Gemm", "MatMul", "Gather"})}
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
        if "labels" in self.model_fields_set and self.accuracy_drop is None:
            raise ValueError("`labels` does nothing without `accuracy_drop`; leave it out")
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
    target: Target = Field("auto", description="With static: the hardware it shall run on; auto is this machine's.")
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
        if "percentile" in self.model_fields_set and self.ranges != "percentile":
            raise ValueError(
                f"`percentile` belongs to `ranges: percentile`, not to '{self.ranges}'; write that, or leave it out"
            )
        if "rows" in self.model_fields_set and self.data is None:
            raise ValueError("`rows` does nothing without `data`; add it, or leave the rows out")
        if "correction_rows" in self.model_fields_set and self.correction == "none":
            raise ValueError("`correction_rows` does nothing without `correction`; add it, or leave the rows out")
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
