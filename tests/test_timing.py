"""Taking turns: every model meets the same machine, and a claim needs an interval that leaves 1 out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.numerics.measure import statistics, timing


class Fake:
    """A model whose calls take as long as it says."""

    def __init__(self, name, milliseconds, log):
        self.name, self.milliseconds, self.log = name, milliseconds, log

    def __call__(self):
        self.log.append(self.name)
        return self.milliseconds


def test_every_round_measures_every_model_and_the_order_rotates():
    log = []
    timers = [Fake(name, 200.0, log) for name in "abc"]
    series = timing.interleave(timers, rounds=12, seconds=math.inf, warmup=2)
    assert log[:6] == list("aabbcc")
    assert "".join(log[6:15]) == "abcbcacab"
    assert [len(item.rounds) for item in series] == [12, 12, 12]
    assert [len(item.calls) for item in series] == [12, 12, 12]


@pytest.mark.parametrize(
    ("milliseconds", "called", "counted"), [(0.0, 51, 50), (0.001, 51, 50), (7.0, 4, 3), (60.0, 2, 1), (500.0, 1, 1)]
)
def test_a_turn_is_a_burst_whose_first_call_does_not_count(milliseconds, called, counted):
    log = []
    (series,) = timing.interleave([Fake("a", milliseconds, log)], rounds=10, seconds=math.inf, warmup=1)
    assert len(log) == 1 + 10 * called
    assert len(series.calls) == 10 * counted


@pytest.mark.parametrize(("seconds", "rounds"), [(5, statistics.FEWEST_ROUNDS), (30, 15)])
def test_the_time_limit_ends_rounds_but_never_below_the_fewest(seconds, rounds):
    log = []
    timers = [Fake(name, 200.0, log) for name in "ab"]
    series = timing.interleave(timers, rounds=50, seconds=seconds, warmup=1, clock=lambda: len(log))
    assert [len(item.rounds) for item in series] == [rounds, rounds]


@settings(max_examples=20)
@given(st.floats(0.2, 5), st.integers(0, 100))
def test_turns_cancel_a_drift_of_the_machine(factor, seed):
    generator, moment = np.random.default_rng(seed), [0]

    def timer(base):
        def once():
            moment[0] += 1
            return base * (1 + moment[0] / 500) * (1 + generator.gamma(2, 0.02))

        return once

    series = timing.interleave([timer(150 * factor), timer(150)], rounds=60, seconds=math.inf, warmup=1)
    found = statistics.ratio(series[0].rounds, series[1].rounds)
    assert found.value == pytest.approx(factor, rel=0.1)


def test_a_claim_is_one_where_no_difference_is_shown():
    assert statistics.Ratio(1.2, 0.9, 1.5, 1.1, 20).claim == 1
    assert statistics.Ratio(1.2, 1.1, 1.5, 1.1, 20).claim == 1.2
    assert statistics.Ratio(0.5, 0.4, 0.6, 0.5, 20).claim == 0.5
