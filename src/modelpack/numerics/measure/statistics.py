"""What repeated timings say, and how sure they are: percentiles, and ratios with a bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Verdict = Literal["faster", "slower", "no difference shown"]

FEWEST_ROUNDS = 10
"""Rounds below which a bootstrap interval of a median is too narrow to be believed."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """The spread of single calls, in milliseconds."""

    calls: int
    minimum: float
    p50: float
    p95: float
    p99: float

    def to_json(self) -> dict[str, Any]:
        """Give the figures under the names that tables use."""
        return {
            "calls": self.calls,
            "min_ms": self.minimum,
            "p50_ms": self.p50,
            "p95_ms": self.p95,
            "p99_ms": self.p99,
        }


@dataclass(frozen=True)
class Ratio:
    """How many times faster a subject is than its reference, with the interval that holds it 95 times in 100.

    Attributes:
        value: Median time of the reference over median time of the subject; above 1 the subject is faster.
        low: Lower end of the interval.
        high: Upper end of the interval.
        of_minima: Fastest round of the reference over that of the subject: a check from the quiet moments.
        rounds: Pairs of rounds it rests on.
    """

    value: float
    low: float
    high: float
    of_minima: float
    rounds: int

    @property
    def verdict(self) -> Verdict:
        """What may be claimed; nothing when the interval holds 1."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"

    @property
    def claim(self) -> float:
        """The ratio that may be claimed: 1 when no difference is shown."""
        return 1.0 if self.verdict == "no difference shown" else self.value

    def sentence(self) -> str:
        """Say it in words.

        >>> Ratio(2.0, 1.9, 2.1, 2.0, 50).sentence()
        '2.00 times as fast (95 % interval 1.90 to 2.10, 50 rounds)'
        >>> Ratio(1.01, 0.97, 1.05, 1.0, 50).sentence()
        'no difference shown (95 % interval 0.97 to 1.05, 50 rounds)'
        """
        said = self.verdict if self.claim == 1 else f"{self.value:.2f} times as fast"
        return f"{said} (95 % interval {self.low:.2f} to {self.high:.2f}, {self.rounds} rounds)"

    def to_json(self) -> dict[str, Any]:
        """Give the figures and the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def summary(milliseconds: Sequence[float]) -> Summary:
    """Summarise the times of single calls; percentiles interpolate linearly between neighbours.

    >>> summary([1.0, 2.0, 3.0]).p50
    2.0

    Raises:
        ValueError: Without samples.
    """
    if not len(milliseconds):
        raise ValueError("there are no samples to summarise")
    samples = np.asarray(milliseconds, dtype=np.float64)
    p50, p95, p99 = (float(value) for value in np.percentile(samples, [50, 95, 99]))
    return Summary(len(samples), float(samples.min()), p50, p95, p99)


def ratio(reference: Sequence[float], subject: Sequence[float], seed: int = 0) -> Ratio:
    """Compare two series of interleaved rounds by the ratio of their medians.

    Rounds are resampled in pairs, because both halves of a round met the same neighbours on the machine:
    drift then moves both medians together and leaves the ratio alone. The interval is the percentile
    bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), seeded, so that equal
    samples give equal claims.

    Args:
        reference: One time per round.
        subject: One time per round, in the same order.
        seed: Seed of the resampling.

    Raises:
        ValueError: When the lengths differ or are below `FEWEST_ROUNDS`, or a time is not above 0.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(subject, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError("rounds come in pairs: both series need the same length")
    if len(first) < FEWEST_ROUNDS:
        raise ValueError(f"{len(first)} rounds carry no interval; {FEWEST_ROUNDS} are the fewest")
    if min(first.min(), second.min()) <= 0:
        raise ValueError("a time is above 0")
    picks = np.random.default_rng(seed).integers(len(first), size=(_RESAMPLES, len(first)))
    resampled = _medians(first[picks]) / _medians(second[picks])
    low, high = (float(value) for value in np.percentile(resampled, [2.5, 97.5]))
    return Ratio(
        value=float(np.median(first) / np.median(second)),
        low=low,
        high=high,
        of_minima=float(first.min() / second.min()),
        rounds=len(first),
    )


def _medians(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.median(rows, axis=1), dtype=np.float64)


def proportion_error(successes: float, trials: int) -> float:
    """Give the standard error of a proportion.

    >>> proportion_error(50, 100)
    0.05
    """
    share = successes / trials
    return float(np.sqrt(max(0.0, share * (1 - share)) / trials))


def paired_error(lost: int, won: int, trials: int) -> float:
    """Give the standard error of the difference of two proportions counted on the same trials.

    Args:
        lost: Trials that only the first got right.
        won: Trials that only the second got right.
        trials: All trials.

    >>> paired_error(0, 0, 100)
    0.0
    """
    return float(np.sqrt(max(0.0, lost + won - (lost - won) ** 2 / trials)) / trials)


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Rank values from 0, equal ones sharing their mean rank.

    >>> ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [0.5, 2.0, 0.5]
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(((last - counts) + (last - 1))[places.reshape(-1)] / 2, dtype=np.float64)


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Correlate the ranks of two series (Spearman's rho); None where one of them is constant."""
    one, two = ranks(first), ranks(second)
    one, two = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / scale if scale else None
