from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelpack.errors import StageError, UsageError
from modelpack.sources.table import table
from sources import bound, opened, problems, read, spec


def write(path, columns):
    """Write the same texts or values as CSV or Parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    lines = zip(*columns.values(), strict=True)
    rows = [",".join("" if value is None else str(value) for value in line) for line in lines]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")


@pytest.fixture(params=["t.csv", "t.parquet"])
def path(tmp_path, request):
    return tmp_path / request.param


def test_columns_become_arrays_of_the_model_s_types(path):
    write(path, {"a": [1, 2, 3], "b": [0.5, -1e-3, 4.0], "kind": ["dog", "cat", "dog"], "unused": ["x", "y", "z"]})
    settings = {
        "path": path.name,
        "columns": {"pair": ["b", "a"], "ids": "a", "one": "b", "flat": "a", "image": ["a", "a", "b", "b"]},
        "label": "kind",
    }
    inputs = {
        "pair": spec("n", 2),
        "ids": spec("n", 1, dtype="int64"),
        "flat": spec("n", dtype="float16"),
        "image": spec("n", 1, 2, 2, dtype="float64"),
    }
    got = read(table, path.parent, settings, inputs)
    assert {name: (array.dtype.name, array.shape) for name, array in got.items()} == {
        "pair": ("float32", (3, 2)),
        "ids": ("int64", (3, 1)),
        "one": ("float32", (3,)),
        "flat": ("float16", (3,)),
        "image": ("float64", (3, 1, 2, 2)),
        "label": ("int64", (3,)),
    }
    np.testing.assert_allclose(got["pair"], [[0.5, 1], [-1e-3, 2], [4, 3]])
    assert got["image"][1].tolist() == [[[2, 2], [-1e-3, -1e-3]]]
    assert got["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        (["7", "2", "7"], {}, np.array([7, 2, 7])),
        (["7", "0.5", "-1"], {}, np.array([7, 0.5, -1], np.float32)),
        (["b", "c", "a"], {}, np.array([1, 2, 0])),
        (["b", "c", "b"], {"classes": ["c", "a", "b"]}, np.array([2, 0, 2])),
        (["1", "2", "1"], {"classes": ["2", "1"]}, np.array([1, 0, 1])),
    ],
)
def test_labels(tmp_path, labels, settings, expected):
    write(tmp_path / "t.csv", {"x": [1, 2, 3], "y": labels})
    got = read(table, tmp_path, {"path": "t.csv", "columns": {"x": "x"}, "label": "y", **settings})["label"]
    assert got.dtype == expected.dtype
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["a", "", "b"], {}, "t.csv, row 2, column 'y': the label is missing"),
        (["a", "d", "b"], {"classes": ["a", "b"]}, "row 2, column 'y': the label 'd' is not among"),
        (["1", "2", "nan"], {}, "row 3, column 'y': the label 'nan' is not a number like the first one, '1'"),
        (["1", "99999999999999999999"], {}, "row 2, column 'y'"),
    ],
)
def test_bad_labels_are_named(tmp_path, labels, settings, message):
    write(tmp_path / "t.csv", {"x": list(range(len(labels))), "y": labels})
    with pytest.raises(StageError, match=message):
        read(table, tmp_path, {"path": "t.csv", "columns": {"x": "x"}, "label": "y", **settings})


@pytest.mark.parametrize(
    ("cells", "dtype", "message"),
    [
        (["1", "2", "x3"], "float32", "row 3, column 'a': 'x3' is no float32"),
        (["1", "2.5", "3"], "int64", "row 2, column 'a': '2.5' is no int64"),
        (["1", "300", "3"], "uint8", "row 2, column 'a': '300' is no uint8"),
        (["1", "0", "maybe"], "bool", "row 3, column 'a': 'maybe' is no bool"),
        (["1", "1e300", "3"], "float32", "row 2, column 'a': .*too large for float32"),
        (["1", "", "3"], "float32", "row 2, column 'a': the value is missing"),
        (["1", " NaN", "3"], "float32", "row 2, column 'a': the value is missing"),
    ],
)
def test_a_bad_cell_names_file_row_and_column(path, cells, dtype, message):
    write(path, {"a": cells, "b": [0] * len(cells)})
    with pytest.raises(StageError, match=f"{path.name}, {message}"):
        read(table, path.parent, {"path": path.name, "columns": {"x": "a"}}, {"x": spec("n", dtype=dtype)})


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([1.0, 2.5], "int32", "row 2, column 'a': 2.5 is no int32"),
        ([1.0, float("nan")], "float32", "row 2, column 'a': the value is missing"),
        ([1, None], "float32", "row 2, column 'a': the value is missing"),
        ([1, 70000], "int16", "row 2, column 'a': 70000 is no int16"),
        ([dt.date(2020, 1, 1)], "float32", "'a' holds date32"),
        ([[1.0], [2.0]], "float32", "'a' holds list"),
    ],
)
def test_a_bad_value_in_parquet_is_named(tmp_path, values, dtype, message):
    write(tmp_path / "t.parquet", {"a": values})
    with pytest.raises(StageError, match=message):
        read(table, tmp_path, {"path": "t.parquet", "columns": {"x": "a"}}, {"x": spec("n", dtype=dtype)})


def test_parquet_kinds_of_columns(tmp_path):
    columns = {
        "dictionary": pa.array(["b", "a", "b"]).dictionary_encode(),
        "flag": [True, False, True],
        "big": [2**60 + 1, 0, -1],
        "decimal": pa.array([1, 2, 3]).cast(pa.decimal128(22, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=1)
    settings = {"path": "t.parquet", "columns": {"x": ["flag", "big", "decimal"], "i": "big"}, "label": "dictionary"}
    got = read(table, tmp_path, settings, {"i": spec("n", dtype="int64")})
    np.testing.assert_allclose(got["x"], [[1, 2**60, 1], [0, 0, 2], [1, -1, 3]])
    assert got["i"].tolist() == [2**60 + 1, 0, -1]
    assert got["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([2.0, 0.5], np.array([2, 0.5], np.float32)), ([True, False], np.array([1, 0])), ([3, 1], np.array([3, 1]))],
)
def test_typed_labels(tmp_path, labels, expected):
    write(tmp_path / "t.parquet", {"x": [1, 2], "y": labels})
    got = read(table, tmp_path, {"path": "t.parquet", "columns": {"x": "x"}, "label": "y"})["label"]
    assert got.dtype == expected.dtype
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_a_missing_typed_label_is_named(tmp_path, absent):
    write(tmp_path / "t.parquet", {"x": [1, 2], "y": [1.0, absent]})
    with pytest.raises(StageError, match="row 2, column 'y': the label is missing"):
        read(table, tmp_path, {"path": "t.parquet", "columns": {"x": "x"}, "label": "y"})


def test_fill_takes_the_place_of_missing_values(path):
    write(path, {"a": [1.0, None, 3.0], "b": [1, 2, None]})
    settings = {"path": path.name, "columns": {"x": ["a", "b"], "i": "b"}, "fill": -1}
    got = read(table, path.parent, settings, {"i": spec("n", dtype="int32")})
    assert got["x"].tolist() == [[1, 1], [-1, 2], [3, -1]]
    assert got["i"].tolist() == [1, 2, -1]


def test_separators_quotes_and_marks(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfa;"b"\r\n1;"x\n;y"\r\n\r\n 2 ;z\r\n')
    got = read(table, tmp_path, {"path": "t.csv", "columns": {"x": "a"}, "label": "b", "separator": ";"})
    assert got["x"].tolist() == [1, 2]
    assert got["label"].tolist() == [0, 1]
    (tmp_path / "t.tsv").write_text("a\tb\n1\t2\n")
    assert read(table, tmp_path, {"path": "t.tsv", "columns": {"x": ["a", "b"]}})["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1\n", "row 2: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n\xff,1\n", "row 2: .*UTF8"),
        (b"a,b\n", "no rows"),
    ],
)
def test_a_broken_text_file_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(StageError, match=rf"t\.csv: .*{message}"):
        read(table, tmp_path, {"path": "t.csv", "columns": {"x": "a"}})


def test_a_broken_parquet_file_is_named(tmp_path):
    write(tmp_path / "t.parquet", {"first": [1]})
    with pytest.raises(StageError, match=r"t\.parquet: there is no column 'fist'\n.*did you mean 'first'"):
        read(table, tmp_path, {"path": "t.parquet", "columns": {"x": "fist"}})
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StageError, match=r"t\.parquet: it cannot be read"):
        read(table, tmp_path, {"path": "t.parquet", "columns": {"x": "first"}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{path: t.csv, columns: {x: nme}}", "t.csv has no column 'nme': did you mean 'name'?"),
        ("{path: t.csv, columns: {x: twice}}", "t.csv has two columns 'twice'"),
        ("{path: t.csv, columns: {x: name}, label: gone}", "no column 'gone'"),
        ("{path: t.csv, columns: {label: name}, label: name}", "both give the array 'label'"),
        ("{path: t.csv, columns: {x: []}}", "1:24 'x' needs at least one column"),
        ("{path: t.csv, columns: {}}", "1:24"),
        ("{path: t.csv}", "missing key 'columns'"),
        ("{path: t.csv, columns: {x: name}, fill: nan}", "finite"),
        ("{path: t.xls, columns: {x: name}}", "1:8 t.xls is none of"),
        ("{path: empty.csv, columns: {x: name}}", "no first line"),
    ],
)
def test_bad_settings_have_a_place(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("name,twice,twice\n1,2,3\n")
    (tmp_path / "t.xls").write_text("")
    (tmp_path / "empty.csv").write_text("")
    found = problems(table, tmp_path.relative_to(tmp_path), text)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("item", "settings", "message"),
    [
        (spec("n", 3), {}, r"2 columns cannot fill the model's 'x', a row of which is \[3\]\n  list 3 columns"),
        (spec("n", "k", 3), {}, "list a multiple of 3 columns"),
        (spec("n", "k", "l"), {}, "cannot fill"),
        (spec("n"), {}, "list 1 columns"),
        (spec("n", 2, dtype="int8"), {"fill": 0.5}, "`fill: 0.5` is no int8"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_runs(tmp_path, item, settings, message):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=message):
        opened(table, tmp_path, {"path": "t.csv", "columns": {"x": ["a", "b"]}, **settings}, {"x": item})


def test_an_open_dimension_takes_what_there_is(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    config = bound(table, tmp_path, "{path: t.csv, columns: {x: [a, b]}}")
    batch = next(iter(table.open(config, {"x": spec("n", "k", 1)}).batches()))
    assert batch["x"].tolist() == [[[1], [2]]]
