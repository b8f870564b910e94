from __future__ import annotations

import numpy as np
import pytest

from modelpack.errors import StageError, UsageError
from modelpack.sources.random import random
from sources import opened, read, spec


def test_values_lie_in_the_declared_range_of_every_input(tmp_path):
    inputs = {
        "a": spec("n", 3, 5),
        "b": spec("n", "length", dtype="int64", range=(2, 9)),
        "c": spec("n", dtype="bool"),
        "d": spec(1, 2, dtype="float16", range=(-4, -3)),
        "e": spec("n", dtype="uint8"),
    }
    source = opened(random, tmp_path, {"dimensions": {"length": 4}, "rows": 200, "batch": 32}, inputs)
    got = {name: np.concatenate([batch[name] for batch in source.batches()]) for name in inputs}
    assert len(source) == 200
    assert {name: (array.dtype.name, array.shape) for name, array in got.items()} == {
        "a": ("float32", (200, 3, 5)),
        "b": ("int64", (200, 4)),
        "c": ("bool", (200,)),
        "d": ("float16", (200, 2)),
        "e": ("uint8", (200,)),
    }
    assert 0 <= got["a"].min() < 0.02
    assert 0.98 < got["a"].max() <= 1
    assert set(got["b"].ravel()) == set(range(2, 10))
    assert set(got["c"]) == {True, False}
    assert got["d"].min() >= -4
    assert got["d"].max() <= -3
    assert set(got["e"]) == {0, 1}
    assert random.synthetic


def test_rows_depend_on_the_seed_only(tmp_path):
    inputs = {"a": spec("n", 3)}
    one = read(random, tmp_path, {"seed": 5, "batch": 3}, inputs)["a"]
    np.testing.assert_array_equal(one, read(random, tmp_path, {"seed": 5, "batch": 64}, inputs)["a"])
    other = read(random, tmp_path, {"seed": 6}, inputs)["a"]
    assert not set(one[:, 0]) & set(other[:, 0])


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ({}, {}, "needs the model's `inputs`"),
        ({"a": spec("n", "length")}, {}, r"'length' has no size\n.*dimensions: \{length: 16\}"),
        ({"a": spec("n", "length")}, {"dimensions": {"length": 2, "lenght": 3}}, "did you mean 'length'"),
        ({"a": spec()}, {}, "no first dimension"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_runs(tmp_path, inputs, settings, message):
    with pytest.raises(UsageError, match=message):
        opened(random, tmp_path, settings, inputs)


@pytest.mark.parametrize(
    "bad",
    [
        spec("n", dtype="int8", range=(0, 300)),
        spec("n", dtype="float16", range=(1e6, 1e7)),
        spec("n", dtype="int8", range=(0.2, 0.8)),
    ],
)
def test_a_range_that_the_type_cannot_hold_is_an_error(tmp_path, bad):
    with pytest.raises(StageError, match="input 'a'"):
        read(random, tmp_path, {}, {"a": bad})


def test_the_declared_inputs_are_part_of_the_digest(tmp_path):
    digests = {
        opened(random, tmp_path, {}, {"a": item}).digest()
        for item in (spec("n", 3), spec("n", 4), spec("n", 3, range=(0, 2)), spec("n", 3, dtype="int8"))
    }
    assert len(digests) == 4
