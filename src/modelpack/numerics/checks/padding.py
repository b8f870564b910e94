"""An input alone and in a padded batch give different answers, although the mask says what is padding.

Masked positions hold large negative numbers; a range that spans them leaves no step for anything else, and only rows
with padding show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.numerics import rows, runtime
from modelpack.numerics.checks.batch import picked
from modelpack.numerics.checks.finding import unchecked
from modelpack.numerics.checks.neighbours import judge
from modelpack.numerics.checks.subject import likeness, real, usual_power
from modelpack.numerics.measure.comparison import MOST_DECIBELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from modelpack.numerics.checks.finding import Finding
    from modelpack.numerics.checks.subject import Subject
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

MOST = 2
"""Rows that are tried."""


@dataclass(frozen=True)
class Mask:
    """The input that says which positions count, and the name of the dimension that counts positions."""

    name: str
    length: str


def mask_of(inputs: Mapping[str, TensorSpec]) -> Mask | None:
    """Find a mask of shape (rows, positions) beside another input with the same dimension of positions."""
    for name, spec in inputs.items():
        length = spec.dynamic.get(1)
        if "mask" not in name.lower() or len(spec.shape) != 2 or length is None:
            continue
        if any(length in other.shape for key, other in inputs.items() if key != name):
            return Mask(name, length)
    return None


def check(subject: Subject) -> Finding:
    """A short row gives the same alone and padded beside a longer one."""
    mask = mask_of(subject.inputs)
    if mask is None:
        return unchecked("it has no mask over a dynamic number of positions")
    if rows.batch_name(subject.inputs) is None:
        return unchecked("its number of rows is fixed")
    longest = max(subject.feeds, key=lambda feed: _length(feed, mask), default=None)
    if longest is None or _length(longest, mask) < 2:
        return unchecked(subject.lacks or "there is no row of two positions or more")
    pairs = _pairs(longest, subject, mask)
    found = _worst(subject.session, pairs)
    if found is None:
        return unchecked("no output has an entry per row")
    usual = _worst(subject.reference_session, pairs) if subject.reference is not None else None
    return judge(
        subject,
        found[0],
        usual[0] if usual is not None else None,
        what="a row alone, and padded beside a longer one",
        remedy="the mask's large negative numbers share a range with the scores: keep the Add, Where and Softmax of "
        "attention in float (quantize MatMul and Gemm only)",
        where=found[1],
    )


def _length(feed: Feed, mask: Mask) -> int:
    return int(np.asarray(feed[mask.name]).astype(bool).sum(axis=1).max(initial=0))


def _pairs(feed: Feed, subject: Subject, mask: Mask) -> list[tuple[Feed, Feed]]:
    """Make a shortened row alone, and the same padded to full length beside a full row."""
    lengths = np.asarray(feed[mask.name]).astype(bool).sum(axis=1)
    order = [int(place) for place in np.argsort(-lengths, kind="stable")]
    made = []
    for place in order[:MOST]:
        short = max(1, int(lengths[place]) // 2)
        row = picked(feed, subject, [place])
        alone = {name: _cut(value, subject.inputs[name], mask, short) for name, value in row.items()}
        padded = picked(feed, subject, [place, order[0] if place != order[0] else order[-1]])
        padded = {name: _blanked(value, subject.inputs[name], mask, short) for name, value in padded.items()}
        # Whoever stands beside it is seen whole, so that the batch is as long as it looks.
        padded[mask.name][1] = np.ones_like(padded[mask.name][1])
        made.append((alone, padded))
    return made


def _cut(value: NDArray[np.generic], spec: TensorSpec, mask: Mask, short: int) -> NDArray[np.generic]:
    for axis, name in spec.dynamic.items():
        value = value.take(range(short), axis=axis) if name == mask.length else value
    return value


def _blanked(value: NDArray[np.generic], spec: TensorSpec, mask: Mask, short: int) -> NDArray[np.generic]:
    """Put zeros, which stand for padding, behind the first positions of the first row."""
    value = np.array(value)
    for axis, name in spec.dynamic.items():
        if name == mask.length and axis > 0:
            np.moveaxis(value[0], axis - 1, 0)[short:] = 0
    return value


def _worst(session: Any, pairs: list[tuple[Feed, Feed]]) -> tuple[float, str] | None:
    worst: tuple[float, str] | None = None
    for alone, padded in pairs:
        one, two = real(runtime.execute(session, alone)), real(runtime.execute(session, padded))
        for name, value in one.items():
            beside = two[name]
            if value.ndim == 0 or len(value) != 1 or len(beside) != 2 or value.ndim != beside.ndim:
                continue
            kept = beside[:1][tuple(slice(size) for size in value.shape)]
            if kept.shape == value.shape:
                alike = likeness(value, kept, floor=usual_power(beside))
                worst = min(worst or (MOST_DECIBELS, name), (alike, name))
    return worst
