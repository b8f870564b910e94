from __future__ import annotations

import numpy as np
import pytest

from modelpack.errors import StageError
from modelpack.sources.python import python
from sources import bound, opened, problems, read

CODE = """
import pathlib, numpy as np
HERE = pathlib.Path(__file__).parent
def rows(n=5, scale=1.0):
    with (HERE / 'calls').open('a') as calls:
        calls.write('x')
    return {'x': np.arange(n) * scale, 'label': list(range(n))}
def stream(n=3):
    for start in range(n):
        yield {'x': np.full(2, start)}
def listed():
    return [{'x': np.full(2, 7)}]
def nothing():
    return None
def array():
    return np.zeros(3)
def number():
    return {'x': 3.0}
def ragged():
    return {'x': [[1], [2, 3]]}
def keyed():
    return {1: [1]}
def uneven():
    return {'x': [1], 'y': [1, 2]}
def wrong_batch():
    yield {'x': [1]}
    yield [1]
def holes():
    yield {'x': [1]}
    yield None
def strict():
    return {'x': np.zeros(3).reshape(2, 2)}
def empty():
    return iter([])
def broken():
    return {}['gone']
def breaks_later():
    yield {'x': [1]}
    raise RuntimeError('second')
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "made.py").write_text(CODE)
    return tmp_path


def test_a_dict_of_arrays_is_rows(base):
    got = read(
        python, base, {"callable": "made.py:rows", "arguments": {"scale": 2.0}, "seed": 3, "batch": 2, "limit": 4}
    )
    assert len(got["x"]) == 4
    np.testing.assert_array_equal(got["x"], got["label"] * 2.0)
    assert got["label"].tolist() != sorted(got["label"])


def test_arguments_are_read_from_text_and_the_function_runs_once(base):
    config = bound(python, base, "callable: made.py:rows\narguments: {n: 3, scale: 1e-1}")
    source = python.open(config, {})
    source.digest()
    assert not (base / "calls").exists()
    assert len(source) == 3
    for _ in range(2):
        np.testing.assert_allclose([batch["x"] for batch in source.batches()], [[0, 0.1, 0.2]])
    assert (base / "calls").read_text() == "x"


@pytest.mark.parametrize("name", ["stream", "listed"])
def test_batches_can_be_read_again(base, name):
    source = opened(python, base, {"callable": f"made.py:{name}"})
    first = [batch["x"].tolist() for batch in source.batches()]
    assert first == ([[0, 0], [1, 1], [2, 2]] if name == "stream" else [[7, 7]])
    assert [batch["x"].tolist() for batch in source.batches()] == first
    assert len(source) == 0


def test_limit_cuts_a_stream(base):
    source = opened(python, base, {"callable": "made.py:stream", "limit": 3})
    assert [batch["x"].tolist() for batch in source.batches()] == [[0, 0], [1]]


@pytest.mark.parametrize("setting", [{"seed": 1}, {"batch": 4}])
def test_what_cannot_apply_to_a_stream_is_an_error(base, setting):
    with pytest.raises(StageError, match=f"`{next(iter(setting))}` cannot apply"):
        read(python, base, {"callable": "made.py:stream", **setting})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned None"),
        ("array", "returned a ndarray"),
        ("number", "'x' is a float"),
        ("ragged", "'x'"),
        ("keyed", "the key 1 is a int"),
        ("uneven", "'x' 1, 'y' 2"),
        ("wrong_batch", "batch 2: it gave a list"),
        ("holes", "batch 2: it gave None"),
        ("strict", r"ValueError: .*\n.*made\.py:32"),
        ("empty", "no batch"),
        ("broken", r"KeyError: 'gone'\n.*made\.py:36"),
        ("breaks_later", r"RuntimeError: second\n.*made\.py:39"),
    ],
)
def test_what_came_is_said(base, name, message):
    with pytest.raises(StageError, match=message) as caught:
        read(python, base, {"callable": f"made.py:{name}"})
    assert "made.py" in caught.value.where


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("callable: nowhere.py:rows", "1:11"),
        ("callable: made.py", "1:11"),
        ("callable: made.py:rows\nfiles: [gone.bin]", "2:9 no such file"),
        ("callable: made.py:rows\nargument: {}", "did you mean 'arguments'?"),
    ],
)
def test_bad_settings_have_a_place(base, text, expected):
    found = problems(python, base, text)
    assert len(found) == 1
    assert expected in found[0]


def test_arguments_are_part_of_the_digest(base):
    digests = {
        opened(python, base, {"callable": "made.py:rows", "arguments": given}).digest()
        for given in ({}, {"n": 5}, {"n": 6})
    }
    assert len(digests) == 3
