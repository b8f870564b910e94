"""Where to aim next when what was estimated is not what was measured.

Regula falsi (the method of false position): the line through the two tries that lie nearest to what is wanted, on
either side of it, says where it would be met. The model before it is cut is always one of the tries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Try = tuple[float, float]
"""A fraction that was estimated, and the one that was measured."""

_MARGIN = 0.1
"""Share of a bracket at either end where no next try lies: measurements are noisy, and curves are no lines."""


def following(tried: Sequence[Try], wanted: float, before: float = 1.0) -> float:
    """Give the fraction to aim at next.

    Args:
        tried: At least one try; none met what is wanted.
        wanted: The fraction that shall be measured, in (0, 1].
        before: The fraction that is there when nothing is removed.

    >>> following([(0.6, 0.8)], 0.6)  # half of the time does not shrink
    0.2
    """
    under = [item for item in tried if item[1] < wanted]
    over = sorted({(before, before), *(item for item in tried if item[1] >= wanted)})
    if under:
        return _between(max(under), over[0], wanted)
    return _beyond(over, wanted, before)


def _between(low: Try, high: Try, wanted: float) -> float:
    """Interpolate in a bracket; where noise turned it round, take its middle."""
    if low[0] >= high[0]:
        return (low[0] + high[0]) / 2
    share = (wanted - low[1]) / (high[1] - low[1])
    return low[0] + min(max(share, _MARGIN), 1 - _MARGIN) * (high[0] - low[0])


def _beyond(over: Sequence[Try], wanted: float, before: float) -> float:
    """Extrapolate below the lowest tries, not further than a quarter of the last aim at once."""
    (aim, measured), (last, known) = over[0], over[1] if len(over) > 1 else (before, before)
    slope = (last - aim) / (known - measured) if known > measured else aim / measured
    return round(min(max(aim - (measured - wanted) * slope, aim / 4), aim * (1 - _MARGIN / 4)), 9)
