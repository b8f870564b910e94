"""Collapsed answers: they have nothing left of the float model's, which no grid of eight bits explains.

Ranges that cut everything off, scales lost by a conversion, the weights of another model: each layer may look sound.
Made-up rows tell too, but only warn: what a model answers to them may be noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.checks.finding import failed, passed, unchecked, warned
from modelpack.numerics.checks.subject import alike
from modelpack.numerics.measure.comparison import decibels

if TYPE_CHECKING:
    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject

LEAST = 3.0
"""Signal-to-noise ratio in decibels that the best output must have: below it, half of the answer is noise."""


def check(subject: Subject) -> Finding:
    """Its answers are the float model's, but for rounding."""
    if not subject.quantized:
        return unchecked("the model is in floating point throughout")
    if subject.reference is None:
        return unchecked("there is no float model to compare with")
    if not subject.feeds:
        return unchecked(subject.lacks or "there are no rows to run it on")
    if not subject.errors:
        return unchecked("it gives no floating-point output")
    best, name = max((decibels(*errors), name) for name, errors in subject.errors.items())
    on = " on made-up rows" * subject.made_up
    if best >= LEAST:
        return passed(f"beside the float model{on}: {alike(best)}")
    return (warned if subject.made_up else failed)(
        f"its answers have nothing to do with the float model's{on}: {alike(best)}",
        "compare with the model it was made from; calibrate on rows like real ones, or keep more layers in float",
        name,
    )
