"""The server's parts alone: conversion, limits, processors, choosing a media type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelpack.server import cpus, rows
from modelpack.server.exchange import preferred
from modelpack.server.faults import Invalid, StartError
from modelpack.server.settings import Settings, describe
from modelpack.server.signature import DTYPES, Signature, Tensor
from modelpack.server.tensors import fit, from_array, from_flat, from_json

shapes = arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)


@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), shape=shapes)
def test_what_is_written_as_json_is_read_back_exactly(data, dtype, shape):
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
    array = data.draw(arrays.arrays(dtype, shape, elements=elements))
    tensor = Tensor("x", shape, dtype)
    given_back = from_json(array.tolist(), tensor)
    assert given_back.dtype == array.dtype
    np.testing.assert_array_equal(given_back, array)
    answer = rows.parse(rows.dump(rows.to_columns({"x": array})))["x"]
    np.testing.assert_array_equal(np.array(answer, dtype), array)


@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), shape=arrays.array_shapes(max_dims=3))
def test_rows_of_any_type_are_written_as_json(data, dtype, shape):
    array = data.draw(arrays.arrays(dtype, shape))
    written = rows.parse(rows.dump(rows.to_rows({"a": array, "b": array}, shape[0])))
    assert len(written) == shape[0]
    for row, expected in zip(written, array, strict=True):
        finite = np.isfinite(expected) if array.dtype.kind == "f" else np.full(expected.shape, True)
        for name in ("a", "b"):
            got = np.array(row[name], dtype=object)
            np.testing.assert_array_equal(got[finite].astype(dtype), expected[finite])
            assert all(value is None for value in np.atleast_1d(got[~finite]).ravel())


@given(data=st.data(), source=st.sampled_from(sorted(DTYPES)), target=st.sampled_from(sorted(DTYPES)))
def test_arrays_are_converted_exactly_or_refused(data, source, target):
    array = data.draw(arrays.arrays(source, (3,)))
    try:
        converted = from_array(array, Tensor("x", (3,), target))
    except Invalid:
        event("refused")
        assert source != target
        return
    assert converted.dtype == target
    if np.dtype(target).kind != "f":
        np.testing.assert_array_equal(converted.astype(object), array.astype(object))
    else:
        np.testing.assert_array_equal(np.isfinite(converted), np.isfinite(array))


def signature(**shapes: tuple[int | str, ...]) -> Signature:
    inputs = {name: Tensor(name, shape, "float32") for name, shape in shapes.items()}
    return Signature(inputs, {"y": Tensor("y", (next(iter(shapes.values()))[0],), "float32")})


@pytest.mark.parametrize(
    ("shapes", "feed", "count"),
    [
        ({"a": ("n", 2)}, {"a": (7, 2)}, 7),
        ({"a": ("n", 2)}, {"a": (7, 3)}, None),
        ({"a": ("n", 2)}, {"a": (9, 2)}, None),
        ({"a": ("n", 2), "b": ("n",)}, {"a": (3, 2), "b": (3,)}, 3),
        ({"a": ("n", 2), "b": ("n",)}, {"a": (3, 2), "b": (4,)}, None),
        ({"a": (1, 2), "b": (1,)}, {"a": (3, 2), "b": (3,)}, 3),
        ({"a": (1, 2), "b": (1,)}, {"a": (3, 2), "b": (4,)}, None),
        ({"a": (2, 2), "b": ("n",)}, {"a": (2, 2), "b": (4,)}, None),
        ({"a": ("n", "m"), "b": ("m", "n")}, {"a": (2, 3), "b": (3, 2)}, 3),
        ({"a": (2, 2)}, {"a": (0, 2)}, None),
    ],
)
def test_shapes_are_checked_across_inputs(shapes, feed, count):
    arrays_ = {name: np.zeros(shape, "float32") for name, shape in feed.items()}
    if count is None and shapes != {"a": (2, 2), "b": ("n",)}:
        with pytest.raises(Invalid):
            fit(arrays_, signature(**shapes), 8)
    else:
        assert fit(arrays_, signature(**shapes), 8)[1] == (count or 4)


def test_settings_come_from_arguments_then_the_environment():
    environment = {"MODELPACK_QUEUE": "3", "MODELPACK_DEADLINE": "0.5", "MODELPACK_MODEL": "/m", "PORT": "9"}
    settings = Settings.read(environment, threads=2, model=None)
    assert (settings.queue, settings.deadline, settings.model, settings.port) == (3, 0.5, "/m", 9)
    assert settings.threads == 2
    assert Settings.read(environment, port=1).port == 1
    assert Settings.read({}) == Settings()


@pytest.mark.parametrize("names", [("MODELPACK_PORT", "AIP_HTTP_PORT"), ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"),
                                   ("SAGEMAKER_BIND_TO_PORT", "PORT")])  # fmt: skip
def test_the_port_of_the_nearer_platform_wins(names):
    assert Settings.read({names[0]: "81", names[1]: "82"}).port == 81
    assert Settings.read({names[0]: "", names[1]: "82"}).port == 82


@pytest.mark.parametrize(
    "environment",
    [
        {"MODELPACK_QUEUE": "x"},
        {"MODELPACK_QUEUE": "1.5"},
        {"MODELPACK_QUEUE": "-1"},
        {"MODELPACK_MAX_BODY": "0"},
        {"MODELPACK_DEADLINE": "nan"},
        {"MODELPACK_DEADLINE": "inf"},
        {"MODELPACK_PORT": "65536"},
        {"PORT": "tcp://10.0.0.1:80"},
    ],
)
def test_malformed_limits_name_their_variable(environment):
    with pytest.raises(StartError, match=next(iter(environment.values())).replace(".", r"\.")):
        Settings.read(environment)


def test_every_limit_is_listed():
    assert describe().count("MODELPACK_") == 28
    assert "MODELPACK_MAX_BODY" in describe()


def group(root, path, **files):
    (root / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / path / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"": "max 100000"}, "0::/", None),
        ({"": "150000 100000"}, "0::/", 1.5),
        ({"a": "400000 100000", "a/b": "max 100000"}, "0::/a/b", 4.0),
        ({"a": "50000 100000", "a/b": "200000 100000"}, "0::/a/b", 0.5),
        ({}, "0::/", None),
        ({"": "100000 100000"}, None, 1.0),
        ({"a": "100000 100000"}, "0::/../../a", 1.0),
    ],
)
def test_the_tightest_quota_counts(tmp_path, files, own, quota):
    for path, text in files.items():
        group(tmp_path, path, cpu__max=text)
    if own is not None:
        (tmp_path / "self").write_text(own + "\n")
    assert cpus.quota(tmp_path, tmp_path / "self") == quota
    available = cpus.available(tmp_path, tmp_path / "self")
    assert 1 <= available <= max(1, int(quota or 10**6))


def test_the_older_control_groups_count_too(tmp_path):
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    (tmp_path / "self").write_text("4:memory:/box\n3:cpu,cpuacct:/box\n")
    assert cpus.quota(tmp_path, tmp_path / "self") == 3.0


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "a/x"),
        ("*/*", "a/x"),
        ("b/y", "b/y"),
        ("b/*", "b/y"),
        ("B/Y;q=0.5, a/x;q=0.4", "b/y"),
        ("b/y;q=0, */*;q=0.1", "a/x"),
        ("b/y;q=5", "a/x"),
        ("c/z", "a/x"),
        (";;,,q=", "a/x"),
    ],
)
def test_accept_headers(accept, chosen):
    assert preferred(accept, ("a/x", "b/y")) == chosen


@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)), shape=shapes)
def test_values_in_row_major_order_are_read_however_they_are_nested(data, dtype, shape):
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
    array = data.draw(arrays.arrays(dtype, shape, elements=elements))
    tensor = Tensor("x", shape, dtype)
    nested = data.draw(st.sampled_from([array.ravel().tolist(), array.reshape(1, -1).tolist(), [array.tolist()]]))
    np.testing.assert_array_equal(from_flat(nested, list(shape), tensor), array)
    with pytest.raises(Invalid, match="takes"):
        from_flat([*array.ravel().tolist(), 0], list(shape), tensor)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "input 'a' is missing"),
        ({"a": np.zeros((1, 2)), "z": np.zeros(1)}, "unknown input 'z': the model's inputs are 'a'"),
        ({"a": np.zeros((1, 2), bool)}, "expected float32, got bool"),
        ({"a": np.full((1, 2), 1e300)}, "too large for float32"),
    ],
)
def test_names_and_element_types_are_checked(feed, message):
    with pytest.raises(Invalid, match=message):
        fit(feed, signature(a=("n", 2)), 8)


def test_what_fits_is_exactly_what_the_model_takes():
    fitted, count = fit({"b": np.ones(3, "int8"), "a": np.ones((2, 3)).T}, signature(a=("n", 2), b=("n",)), 8)
    assert (list(fitted), count) == (["a", "b"], 3)
    assert all(array.dtype == "float32" and array.flags.c_contiguous for array in fitted.values())


@pytest.mark.parametrize(
    ("inputs", "outputs", "shared"),
    [
        ([("n", 2)], [("n",)], True),
        ([("n", "m")], [("n", "m")], True),
        ([("n", 2)], [("n", "k")], False),
        ([("n", 2)], [("k",)], False),
        ([("n", "n")], [("n",)], False),
        ([("n", 2), ("m",)], [("n",)], False),
        ([("n", 2), ()], [("n",)], False),
        ([(1, 2)], [(1,)], False),
    ],
)
def test_requests_share_runs_only_where_one_dimension_is_rows_everywhere(inputs, outputs, shared):
    def named(given):
        return {f"t{at}": Tensor(f"t{at}", shape, "float32") for at, shape in enumerate(given)}

    assert Signature(named(inputs), named(outputs)).batches is shared
