"""Mixtures of float and quantized layers side by side: which are worth having, and which one a budget asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelpack.numerics.measure.statistics import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.measure.statistics import Ratio
    from modelpack.numerics.quantization.settings import Budget

SLACK = 1.01
"""How many times as long a mixture may take before its time counts as longer than another's."""


@dataclass(frozen=True)
class Point:
    """One mixture, measured.

    Attributes:
        kept: Names of the layers that stay float.
        quality: Figures of the comparison with the float model; ``sqnr_db`` is always among them.
        size: Bytes of the file.
        speed: How many times as fast as the float model it is.
        rounds: Milliseconds of one row in each of the rounds that all points were measured in.
        corrected: Whether `quality` is that of corrected constants.
    """

    kept: tuple[str, ...]
    quality: Mapping[str, float]
    size: int
    speed: Ratio
    rounds: tuple[float, ...] = field(repr=False)
    corrected: bool = False

    def slower_than(self, other: Point) -> bool:
        """Whether the rounds show that it takes longer than another point, by more than `SLACK`."""
        return ratio(other.rounds, self.rounds).high < 1 / SLACK

    def dominated_by(self, other: Point) -> bool:
        """Whether another point is at least as good in speed, quality and bytes, and better in one."""
        mine, others = ((-one.speed.value, -one.quality["sqnr_db"], one.size) for one in (self, other))
        return mine != others and all(theirs <= own for own, theirs in zip(mine, others, strict=True))


def fastest(points: Sequence[Point]) -> Point:
    """Give the fastest point.

    Of points whose times the rounds do not tell apart the one that keeps the fewest layers is taken, so that noise
    seldom decides.
    """
    first = max(points, key=lambda point: point.speed.value)
    return min((point for point in points if not point.slower_than(first)), key=lambda point: len(point.kept))


def best(points: Sequence[Point], budget: Budget) -> Point:
    """Give the point that comes nearest to a budget."""
    return max(points, key=lambda point: budget.merit(point.quality))


def sentence(point: Point, budget: Budget, layers: int, *, corrects: bool) -> str:
    """Say in one line what a point keeps and what that brings.

    Args:
        point: The point.
        budget: What it is held against.
        layers: How many layers could be quantized.
        corrects: Whether a correction was asked for, so that a point without one is to be told apart.
    """
    without = " before correction" if corrects and not point.corrected else ""
    return (
        f"keeps {len(point.kept)} of {layers} layers in float: {budget.measure} "
        f"{point.quality[budget.measure]:.4g}{without}, {point.speed.value:.2f} times as fast as float32, "
        f"{point.size:,} bytes"
    )


def table(points: Sequence[Point], chosen: Point) -> list[dict[str, object]]:
    """Describe the points, each with the layers that it keeps beyond those of the point before."""
    rows: list[dict[str, object]] = []
    before: set[str] = set()
    for point in points:
        rows.append(
            {
                "layers_kept": len(point.kept),
                "added": [name for name in point.kept if name not in before],
                "speedup": point.speed.value,
                "speedup_low": point.speed.low,
                "speedup_high": point.speed.high,
                "model_bytes": point.size,
                "corrected": point.corrected,
                **point.quality,
                "on_front": not any(point.dominated_by(other) for other in points),
                "chosen": point is chosen,
            }
        )
        before = set(point.kept)
    return rows
