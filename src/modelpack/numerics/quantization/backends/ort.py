"""onnxruntime's own quantizers: ``quantize_static`` at its best on x86 processors, and ``quantize_dynamic``.

Weights are signed bytes with a scale per channel, activations unsigned bytes (U8S8): its defaults, signed activations
and one scale per tensor, are slower and far less accurate. Percentile and entropy ranges make it keep every activation
of every row in memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.errors import ModelpackError, StageError
from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.quantization import layers
from modelpack.numerics.quantization.settings import Outcome
from modelpack.numerics.silence import Terminal, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.quantization.settings import Evidence, Settings
    from modelpack.numerics.rows import Feed

_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""Rule for ranges → onnxruntime's name for it."""


def static(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Quantize weights and activations with ``quantize_static``.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers; those left out by a pattern are left out here too.
        settings: Method, operators, exclude, ranges and percentile are followed.
        evidence: Rows to calibrate on.

    Raises:
        StageError: When onnxruntime's quantizer fails.
    """
    feeds = Terminal().passing(evidence.read("calibrate", None))

    def make(prepared: Path, made: Path) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

        quantize_static(
            str(prepared),
            str(made),
            _Reader(feeds),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[_METHODS[settings.ranges]],
            extra_options={"CalibPercentile": settings.percentile} if settings.ranges == "percentile" else {},
            **_choice(found, settings),
        )

    return Outcome(_made(model, make), notes=_notes("quantize_static"))


def dynamic(model: ModelProto, found: Sequence[Layer], settings: Settings, _evidence: Evidence) -> Outcome:
    """Quantize weights, and activations at run time, with ``quantize_dynamic``.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers; those left out by a pattern are left out here too.
        settings: Method, operators and exclude are followed.

    Raises:
        StageError: When onnxruntime's quantizer fails.
    """

    def make(prepared: Path, made: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(prepared), str(made), per_channel=True, weight_type=QuantType.QInt8, **_choice(found, settings)
        )

    return Outcome(_made(model, make), notes=_notes("quantize_dynamic"))


class _Reader:
    """Hands rows to onnxruntime, which takes anything that has ``get_next``."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self.rest = feeds

    def get_next(self) -> Feed | None:
        """Give the next feed, or None when there is none left."""
        return next(self.rest, None)


def _choice(found: Sequence[Layer], settings: Settings) -> dict[str, Any]:
    return {
        "op_types_to_quantize": list(settings.operators) if settings.operators else None,
        "nodes_to_exclude": layers.excluded(found, settings.exclude),
    }


def _made(model: ModelProto, make: Callable[[Path, Path], None]) -> ModelProto:
    """Prepare a graph as onnxruntime asks for, and quantize it, by files: its way by values spoils large tensors."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as place, onnxfile.loadable(model) as source:
        given, prepared, made = (Path(place) / f"{name}.onnx" for name in ("given", "prepared", "made"))
        if isinstance(source, bytes):
            given.write_bytes(source)
        else:
            given = source
        try:
            with quiet():
                # Its symbolic shape inference gives up on many exported transformers; onnx's own is enough.
                quant_pre_process(str(given), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
                make(prepared, made)
        except ModelpackError:
            raise
        except Exception as error:  # what it raises is not documented
            raise StageError(
                f"onnxruntime's quantizer failed: {runtime.reason(error)}", then="leave `backend` out"
            ) from error
        return onnxfile.read(made)


def _notes(function: str) -> tuple[str, ...]:
    return (f"quantized by onnxruntime {runtime.ort.__version__}, {function}",)
