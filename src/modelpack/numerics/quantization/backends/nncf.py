"""NNCF's post-training quantization of ONNX graphs, with fast bias correction.

Activations get one scale per tensor: with a scale per channel, its default before depthwise convolutions, onnxruntime
refuses the graph or computes it in floating point. Give it rows one by one (`batch: 1`): it averages the ranges of
batches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from modelpack.errors import MissingError, ModelpackError, StageError
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

EVERY = 2**31 - 1
"""More rows than anyone calibrates on: how many are read is for the data to say."""


def static(model: ModelProto, found: Sequence[Layer], settings: Settings, evidence: Evidence) -> Outcome:
    """Quantize weights and activations.

    Args:
        model: A prepared graph; it stays as it is.
        found: Its layers; those left out by a pattern are left out here too.
        settings: Method and exclude are followed.
        evidence: Rows to calibrate on, read once for each of its passes.

    Raises:
        MissingError: When NNCF is not installed.
        StageError: When NNCF fails.
    """
    made = _quantized(model, layers.excluded(found, settings.exclude), evidence)
    return Outcome(made, notes=(f"quantized by NNCF {metadata.version('nncf')}, activations with a scale per tensor",))


@dataclass(frozen=True)
class _Rows:
    """Rows that NNCF reads from the start as often as it likes."""

    read: Callable[[], Iterator[Feed]]

    def __iter__(self) -> Iterator[Feed]:
        return self.read()


def _quantized(model: ModelProto, excluded: Sequence[str], evidence: Evidence) -> ModelProto:
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports to its vendor
    terminal = Terminal()

    def read() -> Iterator[Feed]:
        return terminal.passing(evidence.read("calibrate", None))

    try:
        with quiet():
            import nncf
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

            made: ModelProto = nncf.quantize(
                onnxfile.copied(model),
                nncf.Dataset(_Rows(read)),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=EVERY,
                fast_bias_correction=True,
                model_type=nncf.ModelType.TRANSFORMER if layers.has_attention(model.graph) else None,
                ignored_scope=nncf.IgnoredScope(names=list(excluded), validate=False),
                advanced_parameters=AdvancedQuantizationParameters(
                    activations_quantization_params=QuantizationParameters(per_channel=False)
                ),
            )
            return made
    except ModelpackError:
        raise
    except ImportError as error:
        raise MissingError("nncf is not installed", then="pip install 'modelpack[peers]'") from error
    except Exception as error:  # what it raises is not documented
        raise StageError(f"NNCF failed: {runtime.reason(error)}", then="leave `backend` out") from error
