"""Claims about timings: what is planted is found, what is not there is not claimed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.numerics.measure import statistics

times = st.lists(st.floats(0.01, 1e4), min_size=10, max_size=60)


def rounds(generator: np.random.Generator, median: float, count: int = 40) -> np.ndarray:
    """Timings as they look on a shared machine: a floor, a long tail, and slow moments."""
    return median * (1 + generator.gamma(2, 0.05, count) + (generator.random(count) < 0.1) * generator.random(count))


@pytest.mark.parametrize("factor", [0.5, 1.3, 2.0])
def test_a_planted_ratio_is_found(factor):
    generator = np.random.default_rng(1)
    subject = rounds(generator, 1.0)
    found = statistics.ratio(factor * rounds(generator, 1.0), subject)
    assert found.low <= factor <= found.high
    assert found.value == pytest.approx(factor, rel=0.06)
    assert found.verdict == ("faster" if factor > 1 else "slower")


def test_equal_distributions_show_no_difference():
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        held += statistics.ratio(rounds(generator, 3.0), rounds(generator, 3.0), seed).verdict == "no difference shown"
    assert held >= 180


def test_drift_that_both_share_does_not_hide_the_ratio():
    generator = np.random.default_rng(2)
    drift = np.linspace(1, 3, 60)
    found = statistics.ratio(2 * drift * rounds(generator, 1, 60), drift * rounds(generator, 1, 60))
    assert found.verdict == "faster"
    assert found.value == pytest.approx(2, rel=0.15)


@given(times, st.integers(0, 2**31))
def test_a_model_against_itself_is_exactly_one(samples, seed):
    found = statistics.ratio(samples, samples, seed)
    assert (found.value, found.low, found.high, found.of_minima) == (1, 1, 1, 1)
    assert found.verdict == "no difference shown"


@settings(max_examples=40)
@given(times, times, st.floats(0.1, 100))
def test_the_unit_of_time_does_not_matter_and_the_seed_fixes_the_claim(first, second, unit):
    count = min(len(first), len(second))
    one, two = np.array(first[:count]), np.array(second[:count])
    found = statistics.ratio(one, two)
    assert found == statistics.ratio(one, two)
    scaled = statistics.ratio(unit * one, unit * two)
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx([found.value, found.low, found.high], rel=1e-6)
    assert found.low <= found.high


@given(st.lists(st.floats(0.001, 1e6), min_size=1))
def test_a_summary_is_ordered_and_inside_the_samples(samples):
    found = statistics.summary(samples)
    assert found.minimum == min(samples)
    assert found.minimum <= found.p50 <= found.p95 <= found.p99 <= max(samples)
    assert found.calls == len(samples)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1.0] * 9, [1.0] * 9, "fewest"),
        ([1.0] * 10, [1.0] * 11, "pairs"),
        ([1.0] * 10, [0.0] * 10, "above 0"),
    ],
)
def test_series_that_carry_no_claim_are_refused(first, second, reason):
    with pytest.raises(ValueError, match=reason):
        statistics.ratio(first, second)


def test_no_samples_have_no_summary():
    with pytest.raises(ValueError, match="no samples"):
        statistics.summary([])


def test_the_error_of_a_difference_counts_only_the_rows_where_they_differ():
    generator = np.random.default_rng(3)
    drops = []
    for _ in range(2000):
        change = generator.choice([1, -1, 0], p=[0.06, 0.02, 0.92], size=400)
        drops.append(change.mean())
    assert statistics.paired_error(24, 8, 400) == pytest.approx(np.std(drops), rel=0.06)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_spearman_sees_only_the_order(values):
    series = np.array(values, dtype=float)
    found = statistics.spearman(series, np.exp(series))
    assert found is None if len(set(values)) == 1 else found == pytest.approx(1)
