"""Slower than what it replaced: both models take turns on a clock; without the float one, known causes are looked for.

Quantized graphs lose their speed where onnxruntime has no integer kernel for the pair of types, or for the pattern of
QDQ pairs, and computes in floating point after all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.errors import StageError, listed
from modelpack.numerics import rows
from modelpack.numerics.checks.finding import failed, passed, unchecked, warned
from modelpack.numerics.measure import timing
from modelpack.numerics.measure.statistics import Ratio, ratio
from modelpack.numerics.quantization import hardware, unpacked
from modelpack.numerics.stored import bits

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject
    from modelpack.numerics.stored import Layer

SLACK = 1.02
"""How many times as long a call may take before it counts as slower."""
DISPATCH_MS = 0.05
"""Differences below this are what the engine spends on calling a few more nodes, not the model's arithmetic."""
ROUNDS = 30
SECONDS = 0.5
"""Limits of the measurement; ten rounds are made whatever they take."""

_MOST = 0.5
"""Share of the weights from which a cause alone, unmeasured, is a failure."""
_INTEGERS = ("UINT8", "INT8")
"""Element types of activations that integer kernels take."""
_X86 = ("vnni", "amx", "avx2")


@dataclass(frozen=True)
class Sign:
    """A known cause of slowness.

    Attributes:
        cause: What was seen.
        remedy: What helps.
        where: The layers.
        share: How much of the layers' weights it concerns.
        firm: Whether it is known to cost more than quantization gains, so that nothing need be measured.
    """

    cause: str
    remedy: str
    where: str
    share: float
    firm: bool = True


def check(subject: Subject) -> Finding:
    """It is not slower than the float model."""
    known = signs(subject)
    if subject.reference is None:
        return _by_signs(subject, known)
    if not subject.feeds:
        return unchecked(subject.lacks or "there are no rows to measure with")
    found, milliseconds = measured(subject)
    return judge(found, milliseconds, known, promised=_promises(subject))


def judge(found: Ratio, milliseconds: float, known: list[Sign], *, promised: bool) -> Finding:
    """Turn a measurement into a verdict.

    Args:
        found: Time of the float model over that of the model.
        milliseconds: How much longer a call takes; negative when it is shorter.
        known: Causes of slowness that the graph shows.
        promised: Whether the model's form is meant to be faster, not smaller alone.
    """
    slower = found.high < 1 / SLACK and milliseconds > DISPATCH_MS
    first = max(known, key=lambda sign: (sign.firm, sign.share), default=None)
    if not slower:
        told = f"against the float model: {found.sentence()}"
        if found.high < 1:
            told += f"; {milliseconds:.3f} ms more a call are within what counts as the same"
        return passed(told) if first is None else warned(f"{told}, but {first.cause}", first.remedy, first.where)
    told = f"slower than the float model: {found.sentence()}"
    if not promised:
        return warned(f"{told}; its form saves bytes and promises no time here", "keep it where bytes matter more")
    if first is None:
        return failed(told, "keep the float model, quantize fewer layers, or accept it (`allow_slower: true`)")
    return failed(f"{told}; {first.cause}", first.remedy, first.where)


def _by_signs(subject: Subject, known: list[Sign]) -> Finding:
    if not subject.quantized:
        return unchecked("there is no float model to compare with")
    if not known:
        return unchecked("there is no float model to compare with; the graph shows no known cause of slowness")
    first = max(known, key=lambda sign: (sign.firm, sign.share))
    return (failed if first.firm and first.share >= _MOST else warned)(first.cause, first.remedy, first.where)


def measured(subject: Subject) -> tuple[Ratio, float]:
    """Time both models on one row, in turns.

    Returns:
        Time of the float model over that of the model; how many milliseconds longer the model takes.

    Raises:
        StageError: When one of them does not run.
    """
    feed = rows.take(subject.feeds[0], subject.inputs, 1)
    timers = [timing.of_session(item, feed, subject.device) for item in (subject.reference_session, subject.session)]
    before, after = timing.interleave(timers, rounds=ROUNDS, seconds=SECONDS, warmup=3)
    found = ratio(before.rounds, after.rounds)
    longer = sorted(two - one for one, two in zip(before.rounds, after.rounds, strict=True))
    return found, longer[len(longer) // 2]


def _promises(subject: Subject) -> bool:
    """Whether the model's form is meant to be faster: integer products are, where onnxruntime has kernels for them."""
    reduced = [layer for layer in subject.layers if layer.reduced]
    return not reduced or (subject.device == "cpu" and any(layer.activations in _INTEGERS for layer in reduced))


def signs(subject: Subject) -> list[Sign]:
    """Look for known causes of slowness on a processor."""
    if hardware.profile("auto", subject.device).name not in _X86:
        return []
    signed = [layer for layer in subject.layers if layer.activations == "INT8" and bits(layer.kind) <= 8]
    convolutions = [layer for layer in subject.layers if layer.operator in ("Conv", "QLinearConv")]
    unsigned = [layer for layer in convolutions if layer.kind == "UINT8" and layer.activations == "UINT8"]
    dynamic = [layer for layer in subject.layers if layer.operator == "ConvInteger"]
    pairs = [layer for layer in subject.layers if layer.activations in _INTEGERS and layer.dequantized]
    floating = _floating(pairs, subject)
    total = max(sum(layer.elements for layer in subject.layers if layer.reduced), 1)

    def sign(some: list[Layer], cause: str, remedy: str, *, firm: bool = True) -> Sign:
        share = sum(layer.elements for layer in some) / total
        return Sign(f"{len(some)} {cause}", remedy, listed([layer.name for layer in some]), share, firm)

    found = [
        sign(
            signed,
            "layers take signed activations with signed weights (S8S8), for which x86 processors have no fast kernel",
            "quantize activations as unsigned bytes (U8S8; `activation_type=QuantType.QUInt8`)",
        ),
        sign(
            unsigned,
            "convolutions take unsigned weights (U8U8), for which x86 processors have no fast kernel",
            "quantize weights as signed bytes (U8S8; `weight_type=QuantType.QInt8`)",
            firm=False,
        ),
        sign(
            dynamic,
            "convolutions became ConvInteger (dynamic quantization), which is slower than float ones",
            "quantize convolutions statically, with calibration; leave them out of dynamic quantization",
        ),
        sign(
            floating,
            f"of {len(pairs)} layers between QDQ pairs are not fused: onnxruntime computes them in floating point",
            "give each layer its own QDQ pairs on input, weights and output, with one scale per activation",
        ),
    ]
    return [item for item in found if item.share > 0]


def _floating(pairs: list[Layer], subject: Subject) -> list[Layer]:
    """Find the layers between QDQ pairs that onnxruntime nevertheless computes in floating point."""
    if not pairs:
        return []
    try:
        floating = unpacked.weights(subject.model)
    except StageError:  # the check of levels tells of a model that cannot be loaded
        return []
    return [layer for layer in pairs if layer.weights.name in floating]
