"""Other quantizers as their documentation says to call them, for what modelpack's own `backend` does not offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

Feed = dict[str, "np.ndarray"]


def onnxruntime_static(fp32: Path, feeds: Iterable[Feed], made: Path, **options: Any) -> None:
    """Quantize by onnxruntime's ``quantize_static``, after the preparation that it asks for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    prepared = made.with_suffix(".prepared.onnx")
    # Its symbolic shape inference gives up on MiniLM; onnx's own is enough for all.
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(made), Reader(), **options)


def onnxruntime_best(fp32: Path, feeds: Iterable[Feed], made: Path) -> None:
    """Quantize by ``quantize_static`` with a scale per channel and unsigned activations, its best on x86."""
    from onnxruntime.quantization import QuantType

    chosen = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    onnxruntime_static(fp32, feeds, made, per_channel=True, **chosen)


def onnxruntime_dynamic(fp32: Path, _feeds: Iterable[Feed], made: Path) -> None:
    """Quantize by ``quantize_dynamic`` with a scale per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = made.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(made), per_channel=True, weight_type=QuantType.QInt8)


def nncf_static(fp32: Path, feeds: Iterable[Feed], made: Path, *, transformer: bool) -> None:
    """Quantize by NNCF; with a scale per channel of activations, its default, onnxruntime refuses depthwise layers."""
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    rows = list(feeds)
    quantized = nncf.quantize(
        onnx.load(fp32),
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        fast_bias_correction=True,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            activations_quantization_params=advanced.QuantizationParameters(per_channel=False)
        ),
    )
    onnx.save(quantized, made)


def onnxsim_static(fp32: Path, feeds: Iterable[Feed], made: Path) -> None:
    """Quantize by onnxsim with its defaults."""
    import onnxsim

    onnx.save(onnxsim.quantize_static(onnx.load(fp32), list(feeds)), made)
