import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.numerics.quantization.correction import adaround, rounding


def problem(seed, groups=2, rows=3, columns=5, levels=7):
    """Correlated inputs, weights, and coarse scales."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((groups, 4 * columns, columns)) @ generator.standard_normal((columns, columns))
    weights = generator.standard_normal((groups, rows, columns))
    scales = np.abs(weights).max(axis=2) / levels
    return weights, scales, rounding.damped(np.swapaxes(inputs, 1, 2) @ inputs, 0.01)


@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([1, 2, 9, 30]))
@settings(max_examples=12, deadline=None)
def test_no_row_is_further_off_than_rounded_to_nearest(seed, rows, columns):
    weights, scales, moment = problem(seed, 2, rows, columns)
    steps, plain = adaround.learned(weights, scales, moment), rounding.nearest(weights, scales)
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() <= rounding.LIMIT
    assert (np.abs(steps - weights / scales[:, :, None]) <= 1).all()
    off, plain_off = (rounding.error(item, weights, scales, moment) for item in (steps, plain))
    assert (off <= plain_off).all()


def test_it_gains_what_greedy_rounding_gains():
    weights, scales, moment = problem(5, 1, 16, 64)
    off = {
        name: rounding.error(steps, weights, scales, moment).sum()
        for name, steps in (
            ("nearest", rounding.nearest(weights, scales)),
            ("greedy", rounding.rounded(weights, scales, moment)),
            ("learned", adaround.learned(weights, scales, moment)),
        )
    }
    assert off["learned"] < 0.5 * off["nearest"]
    assert off["learned"] < 1.5 * off["greedy"]


def test_weights_on_the_grid_stay():
    _, scales, moment = problem(3)
    steps = np.random.default_rng(3).integers(-127, 128, (2, 3, 5)).astype(np.float64)
    assert np.array_equal(adaround.learned(steps * scales[:, :, None], scales, moment), steps)


def test_the_same_weights_are_rounded_the_same_way():
    given_ = problem(9, 2, 8, 40)
    assert np.array_equal(adaround.learned(*given_), adaround.learned(*given_))


@pytest.mark.cuda
def test_both_devices_find_roundings_of_the_same_worth():
    weights, scales, moment = problem(5, 1, 16, 64)
    one, two = (
        rounding.error(adaround.learned(weights, scales, moment, device=device), weights, scales, moment).sum()
        for device in ("cpu", "cuda")
    )
    assert two == pytest.approx(one, rel=0.05)
