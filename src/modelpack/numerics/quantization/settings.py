"""What a quantization is told, what it may look at, and what it gives back: the same for every method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.device import Target
    from modelpack.numerics.quantization.calibration.record import Calibration
    from modelpack.numerics.rows import Feed

Method = Literal["static", "dynamic", "weight_only", "float16", "bfloat16"]
Backend = Literal["builtin", "ort", "nncf"]
RangeRule = Literal["minmax", "percentile", "entropy", "mse"]
Rounding = Literal["nearest", "hqq", "gptq"]
Form = Literal["nbits", "qdq"]
Correction = Literal["none", "bias", "sequential", "rounding", "adaround"]
Measure = Literal["sqnr_db", "agreement", "accuracy_drop"]


@dataclass(frozen=True)
class Budget:
    """How close to the float model a quantized one must stay.

    Attributes:
        measure: ``sqnr_db`` and ``agreement`` are at least `limit`, ``accuracy_drop`` is at most that.
        limit: The bound.
    """

    measure: Measure
    limit: float

    def __str__(self) -> str:
        return f"{self.measure} {'≤' if self.measure == 'accuracy_drop' else '≥'} {self.limit:g}"

    def met(self, quality: Mapping[str, float]) -> bool:
        """Whether measured figures are within the budget."""
        value = quality[self.measure]
        return value <= self.limit if self.measure == "accuracy_drop" else value >= self.limit

    def merit(self, quality: Mapping[str, float]) -> tuple[float, float]:
        """Give what orders figures from worse to better; equal ones are told apart by the error's power."""
        value = quality[self.measure]
        return (-value if self.measure == "accuracy_drop" else value, quality["sqnr_db"])


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        method: What becomes of weights and activations.
        backend: Whose quantizer does it: ours, or one of `backends`.
        operators: Quantize only these operators; chosen by the kind of network when None.
        exclude: Patterns of names of layers to leave alone.
        ranges: How static finds the range of an activation.
        percentile: Share of the values that a range holds, in per cent, for ``percentile``.
        equalize: Whether static evens out the ranges of channels between layers first.
        smooth: Share of the activations' outliers that static moves into the weights first; None for none.
        correction: What static does to rounded weights and biases afterwards, to follow the float layers.
        correction_rows: How many rows that may look at.
        wide: Patterns of names of layers that static gives 16-bit activations.
        target: The hardware that static makes the model for.
        portable: Whether static keeps products inside what processors without VNNI can add up.
        bits: Bits of a weight, for weight_only.
        group: Weights that share one scale, for weight_only.
        rounding: How weight_only rounds: to the nearest code, on half-quadratic grids, or by the layers' inputs.
        form: How weight_only writes a product: onnxruntime's ``MatMulNBits``, or standard ``DequantizeLinear``.
        keep_operators: Operators that stay float32, for float16 and bfloat16.
        budget: How close static must stay to the float model, with layers kept in float where needed.
    """

    method: Method = "static"
    backend: Backend = "builtin"
    operators: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    ranges: RangeRule = "minmax"
    percentile: float = 99.999
    equalize: bool = False
    smooth: float | None = None
    correction: Correction = "none"
    correction_rows: int = 128
    wide: tuple[str, ...] = ()
    target: Target = "auto"
    portable: bool = False
    bits: Literal[8, 4] = 4
    group: int = 32
    rounding: Rounding = "nearest"
    form: Form = "nbits"
    keep_operators: tuple[str, ...] = ()
    budget: Budget | None = None


def _no_rows(_label: str, _limit: int | None) -> Iterable[Feed]:
    return ()


def _no_labels(_label: str) -> Iterable[tuple[Feed, NDArray[np.generic]]]:
    return ()


def _quietly(names: Sequence[str], _label: str) -> Iterable[str]:
    return names


def _unheard(_text: str) -> None:
    return


@dataclass(frozen=True)
class Evidence:
    """What data say about a model.

    Attributes:
        calibration: Ranges and histograms of activations, for static.
        read: Reads the rows once more from the start: what for, as a progress label, and how many at most.
        seed: Seed of everything random.
        device: Where models run.
        track: Passes names through, showing progress under a label.
        labelled: Reads the rows with their labels; the argument says what for.
        note: Tells the user at once what an outcome could not, where there will be none.
    """

    read: Callable[[str, int | None], Iterable[Feed]] = _no_rows
    calibration: Calibration | None = None
    seed: int = 0
    device: str = "cpu"
    track: Callable[[Sequence[str], str], Iterable[str]] = _quietly
    labelled: Callable[[str], Iterable[tuple[Feed, NDArray[np.generic]]]] = _no_labels
    note: Callable[[str], None] = _unheard


@dataclass(frozen=True)
class Outcome:
    """A quantized graph and what its method has to tell.

    Attributes:
        model: The graph.
        results: Tables and other JSON values, by name.
        metrics: Figures, by name.
        notes: What needs no action.
        warnings: What deserves attention.
        kept: Layers that the method itself left in float, with the reason.
    """

    model: ModelProto
    results: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
