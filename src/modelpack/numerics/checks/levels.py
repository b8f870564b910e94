"""Whether the model runs, and gives the same, at every optimization level of onnxruntime.

Fusing a QDQ pair into an integer kernel moves a value by a step where it lay between two; that is rounding. Some
fusions compute something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics import runtime
from modelpack.numerics.checks.finding import failed, passed, unchecked
from modelpack.numerics.checks.subject import alike, likeness, opened, real

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

ALIKE = {8: 15.0, 16: 30.0, 32: 50.0}
"""Bits of the coarsest numbers → signal-to-noise ratio in decibels that levels must keep beside no optimization."""


def check(subject: Subject) -> Finding:
    """All optimization levels give the same outputs."""
    feed, outputs = subject.few, {}
    for level in runtime.LEVELS:
        try:
            session = opened(subject.model, subject.device, level)
            outputs[level] = real(runtime.execute(session, feed)) if feed is not None else {}
        except StageError as error:
            return failed(
                f"{error.what} (optimization level '{level}')",
                "make the file again with standard operators of an opset that onnxruntime has, activations per tensor",
            )
    if feed is None:
        return unchecked(subject.lacks or "there are no rows to run it on")
    plain = outputs.pop("disabled")
    if not plain:
        return unchecked("it gives no floating-point output")
    ratios = {(level, name): likeness(plain[name], got[name]) for level, got in outputs.items() for name in plain}
    (level, name), worst = min(ratios.items(), key=lambda item: item[1])
    limit = ALIKE[_coarsest(subject)]
    if worst >= limit:
        return passed(f"between levels: {alike(worst)}")
    return failed(
        f"output '{name}' at optimization level '{level}' is not what the graph says: {alike(worst)} beside no "
        f"optimization, {limit:.0f} dB and more are rounding",
        "a fusion changes the result: keep the layer it concerns in float, or write its operator plainly (Gemm with "
        "alpha and beta 1, one scale on both sides of a reshape)",
        name,
    )


def _coarsest(subject: Subject) -> int:
    if not subject.quantized:
        return 32
    half = all(layer.kind in ("FLOAT", "FLOAT16", "BFLOAT16") for layer in subject.layers)
    return 16 if half and any(layer.reduced for layer in subject.layers) else 8
