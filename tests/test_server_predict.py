"""POST /predict over a socket: what every form of request gives, and what every wrong one is told."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import onnxruntime
import pytest

from serving import JSON, Server, linear, logarithm, pair, reshaping, table, whole, write_model

ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        make.__name__: make(root / make.__name__) for make in (linear, logarithm, pair, reshaping, table, whole)
    } | {
        "one": linear(root / "one", 1),
        "two": linear(root / "two", 2),
    }


@pytest.fixture(scope="module")
def serve(folders):
    running = {}

    def get(name: str) -> Server:
        if name not in running:
            running[name] = Server(folders[name])
        return running[name]

    yield get
    codes = [server.stop() for server in running.values()]
    assert codes == [0] * len(codes)


def direct(folder, feed):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def test_rows_give_rows_that_equal_the_runtime(serve, folders):
    status, answer = serve("linear").predict({"instances": ROWS.tolist()})
    assert status == 200
    assert set(answer) == {"predictions", "model_name", "model_version"}
    np.testing.assert_array_equal(np.float32(answer["predictions"]), direct(folders["linear"], {"x": ROWS})[0])


@pytest.mark.parametrize("wrap", [lambda rows: {"x": rows}, lambda rows: rows])
def test_columns_give_columns(serve, folders, wrap):
    status, answer = serve("linear").predict({"inputs": wrap(ROWS.tolist()), "parameters": {"any": 1}})
    assert status == 200
    np.testing.assert_array_equal(np.float32(answer["outputs"]["y"]), direct(folders["linear"], {"x": ROWS})[0])


def test_rows_may_be_objects(serve):
    plain = serve("linear").predict({"instances": ROWS.tolist()})
    assert serve("linear").predict({"instances": [{"x": row} for row in ROWS.tolist()]}) == plain


@pytest.mark.parametrize(
    "accept", ["application/octet-stream", "application/x-npy", "application/json", "*/*", "text/csv"]
)
def test_a_raw_tensor_is_answered_as_the_client_accepts(serve, folders, accept):
    headers = {"content-type": "application/octet-stream", "x-shape": "5, 4", "accept": accept}
    status, answered, body = serve("linear").ask("POST", "/predict", ROWS.tobytes(), headers)
    assert status == 200
    expected = direct(folders["linear"], {"x": ROWS})[0]
    if accept == "application/octet-stream":
        assert (answered["x-shape"], answered["x-dtype"]) == ("5,3", "float32")
        given = np.frombuffer(body, "<f4").reshape(5, 3)
    elif accept == "application/x-npy":
        given = np.load(io.BytesIO(body))
    else:
        given = np.float32(json.loads(body)["predictions"])
    np.testing.assert_array_equal(given, expected)


def table_of(rows, *heading):
    lines = [",".join(map(str, line)) for line in ([heading] if heading else []) + list(rows)]
    return "\r\n".join([*lines, ""]).encode()


@pytest.mark.parametrize("heading", [(), ("a", "b", "c", "d")])
def test_a_table_gives_rows(serve, heading):
    plain = serve("linear").predict({"instances": ROWS.tolist()})
    status, _, body = serve("linear").ask(
        "POST", "/predict", table_of(ROWS.tolist(), *heading), {"content-type": "text/csv"}
    )
    assert (status, json.loads(body)) == plain


def test_a_table_for_several_inputs_names_them(tmp_path):
    from onnx import helper

    folder = write_model(
        tmp_path,
        [helper.make_node("Where", ["flag", "a", "zero"], ["y"])],
        {"a": (["batch"], "float32"), "flag": (["batch", 1], "bool")},
        {"y": (["batch", "batch"], "float32")},
        {"zero": np.float32(0)},
    )
    with Server(folder) as server:

        def ask(text):
            status, _, body = server.ask("POST", "/predict", text, {"content-type": "text/csv; charset=utf-8"})
            return status, json.loads(body)

        assert ask(b"flag,a\nTrue,1.5\n0, 2\n")[1]["predictions"] == [[1.5, 2.0], [0.0, 0.0]]
        assert "must name the inputs 'a', 'flag'" in ask(b"1,2\n")[1]["error"]
        assert "must name the inputs" in ask(b"a,b\n1,2\n")[1]["error"]
        assert "line 2, column 2: expected bool for input 'flag', found '2'" in ask(b"a,flag\n1,2\n")[1]["error"]


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("linear", b"", "the body is empty"),
        ("linear", b"a,b,c,d\n", "the table has no rows"),
        ("linear", b"\xff\xfe", "not a table"),
        ("linear", b'1,2,3,"4', "not a table"),
        ("linear", b"1,2,3,4\n1,2,3\n", "line 2 has 3 cells, and the first has 4"),
        ("linear", b"1,2,3\n", r"of shape \[batch, 4\] is not one of 3 cells a row"),
        ("linear", b"1,2,3,4\n1,2,,4\n", "line 2, column 3: expected float32 for input 'x', found ''"),
        ("linear", b"1,2,3,4\n1,2,nan,4\n", "found 'nan'"),
        ("linear", b"1,2,3,4\n1,2,1e999,4\n", "found '1e999'"),
        ("linear", b"1,2,3,4\n1,2,1_0,4\n", "found '1_0'"),
        ("linear", b"1,2,3,1e300\n", "too large for float32"),
        ("table", b"1\n2.5\n", "line 2, column 1: expected int64 for input 'id', found '2.5'"),
        ("table", b"99999999999999999999\n", "outside"),
        ("pair", b"ids,mask\n1,true\n", r"\[batch, length\] is not one of 1 cells a row"),
    ],
)
def test_wrong_tables_are_400_with_the_place(serve, model, body, message):
    status, _, answer = serve(model).ask("POST", "/predict", body, {"content-type": "text/csv"})
    assert status == 400
    assert re.search(message, json.loads(answer)["error"]), answer


@pytest.mark.parametrize(
    "array",
    [ROWS, ROWS.astype("float64"), np.asfortranarray(ROWS), ROWS.astype(">f4"), np.ones((2, 4), "int16")],
    ids=["float32", "float64", "fortran", "big-endian", "int16"],
)
def test_npy_files_are_converted_where_no_value_changes(serve, folders, array):
    status, _, body = serve("linear").ask("POST", "/predict", npy(array), {"content-type": "application/x-npy"})
    assert status == 200
    expected = direct(folders["linear"], {"x": np.ascontiguousarray(array, "float32")})[0]
    np.testing.assert_array_equal(np.float32(json.loads(body)["predictions"]), expected)


def test_several_inputs_and_outputs_of_several_types(serve):
    ids, mask = [[3, 5], [7, 2]], [[True, False], [True, True]]
    columns = serve("pair").predict({"inputs": {"ids": ids, "mask": mask}})
    assert columns[1]["outputs"] == {"total": [3.0, 9.0], "largest": [5, 7]}
    rows = [{"ids": row, "mask": flags} for row, flags in zip(ids, mask, strict=True)]
    assert serve("pair").predict({"instances": rows})[1]["predictions"] == [
        {"total": 3.0, "largest": 5},
        {"total": 9.0, "largest": 7},
    ]


def test_a_dynamic_length_may_differ_between_requests(serve):
    for length in (1, 2, 33):
        content = {"inputs": {"ids": [[1] * length], "mask": [[True] * length]}}
        assert serve("pair").predict(content)[1]["outputs"]["total"] == [float(length)]


def test_tensors_without_rows_go_by_columns(serve):
    assert serve("whole").predict({"inputs": {"x": [1, 2, 3], "scale": 2}})[1]["outputs"] == {"sum": 12.0}
    status, answer = serve("whole").predict({"instances": [{"x": 1, "scale": 2}]})
    assert status == 400
    assert "columns" in answer["error"]


def test_nan_and_infinity_become_null(serve):
    status, answer = serve("logarithm").predict({"instances": [[-1, 1], [0, 1]]})
    assert status == 200
    assert answer["predictions"] == [[None, 0.0], [None, 0.0]]


def test_raw_answers_keep_nan_and_infinity(serve):
    body = np.float32([[-1, 0]]).tobytes()
    headers = {"content-type": "application/octet-stream", "x-shape": "1,2", "accept": "application/octet-stream"}
    given = np.frombuffer(serve("logarithm").ask("POST", "/predict", body, headers)[2], "<f4")
    assert np.isnan(given[0])
    assert given[1] == -np.inf


def test_a_model_of_one_row_runs_rows_one_by_one(serve, folders):
    status, answer = serve("one").predict({"instances": ROWS.tolist()})
    assert status == 200
    expected = np.concatenate([direct(folders["one"], {"x": row[None]})[0] for row in ROWS])
    np.testing.assert_array_equal(np.float32(answer["predictions"]), expected)


def test_a_model_of_two_rows_says_so(serve):
    assert serve("two").predict({"instances": ROWS[:2].tolist()})[0] == 200
    status, answer = serve("two").predict({"instances": ROWS[:3].tolist()})
    assert status == 400
    assert answer["error"] == "input 'x': this model takes exactly 2 rows in a request, got 3"


def test_an_index_beyond_a_table_is_the_clients_mistake(serve):
    status, answer = serve("table").predict({"instances": [10]})
    assert status == 400
    assert "idx=10" in answer["error"]
    assert serve("table").predict({"instances": [9]})[1]["predictions"] == [[18.0, 19.0]]


def test_a_failure_inside_the_model_is_500_without_a_trace(tmp_path):
    with Server(reshaping(tmp_path)) as server:
        headers = {**JSON, "x-request-id": "look-for-me"}
        status, _, body = server.ask("POST", "/predict", '{"inputs": {"x": [1, 2, 3]}}', headers)
        assert status == 500
        assert json.loads(body) == {"error": "the server failed on this request; its log has the reason (look-for-me)"}
        assert server.predict({"inputs": {"x": [1, 2]}})[1]["outputs"] == {"y": [[1.0, 2.0]]}
        status, answer = server.predict({"instances": [1, 2]})
        assert (status, answer["error"]) == (
            400,
            "output 'y' has shape [1, 2], not one row for each of 2: send columns instead",
        )
        assert server.stop() == 0
    assert "look-for-me" in "".join(server.log)


BAD_JSON = [
    ("linear", b"", "the body is empty"),
    ("linear", b"{", "not JSON"),
    ("linear", b'{"instances": [[NaN,1,1,1]]}', "not JSON"),
    ("linear", b'{"instances": [[1e999,1,1,1]]}', "not JSON"),
    ("linear", b"\xff\xfe", "not JSON"),
    ("linear", b"[" * 5000, "not JSON"),
    ("linear", b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", "expected 2 nested arrays|found an array at"),
    ("linear", b"[[1,2,3,4]]", "expected a JSON object"),
    ("linear", b"{}", "exactly one"),
    ("linear", b'{"instances": [[1,2,3,4]], "inputs": {}}', "exactly one"),
    ("linear", b'{"instnces": []}', "unknown key 'instnces'"),
    ("linear", b'{"instances": [[1,2,3,4]], "parameters": 3}', "'parameters' is not an object"),
    ("linear", b'{"instances": {}}', "not an array of rows"),
    ("linear", b'{"instances": []}', "at least one row"),
    ("linear", b'{"inputs": {"x": []}}', r"expected shape \[batch, 4\], got \[0, 0\]"),
    ("linear", b'{"instances": [[1,2,3]]}', r"'x': expected shape \[batch, 4\], got \[1, 3\]"),
    ("linear", b'{"instances": [1,2,3,4]}', r"'x'.*found a whole number at depth 1"),
    ("linear", b'{"instances": [[[1],[2],[3],[4]]]}', r"'x': expected float32, found an array at \[0, 0\]; more than 2"),
    ("linear", b'{"instances": [[1,2,3,4],[1,2]]}', "'x' is ragged.*arrays of 2 and of 4"),
    ("linear", b'{"instances": [[1,2,3,4],[]]}', "'x' is ragged"),
    ("linear", b'{"instances": [[1,2,"3",4]]}', r"'x': expected float32, found a string at \[0, 2\]"),
    ("linear", b'{"instances": [[1,2,null,4]]}', r"found null at \[0, 2\]"),
    ("linear", b'{"instances": [[1,2,true,4]]}', r"found a boolean at \[0, 2\]"),
    ("linear", b'{"instances": [[0.5,2.5,3.5,4.5],[0.5,false,3.5,4.5]]}', r"found a boolean at \[1, 1\]"),
    ("linear", b'{"instances": [[1,2,{},4]]}', r"found an object at \[0, 2\]"),
    ("linear", b'{"instances": [[1,2,1e300,4]]}', "1e\\+300 is too large for float32"),
    ("linear", b'{"instances": [[1,2,-100000000000000000000000000000000000000000,4]]}', "-1e\\+41 is too large"),
    ("linear", b'{"inputs": {"z": 1}}', "unknown input 'z': the model's inputs are 'x'"),
    ("linear", b'{"inputs": {}}', r"input 'x' is missing \(shape \[batch, 4\], float32\)"),
    ("linear", b'{"instances": [{"x": [1,2,3,4]}, [1,2,3,4]]}', r"instances\[1\] is not an object with the inputs 'x'"),
    ("linear", b'{"instances": [{"x": [1,2,3,4]}, {}]}', r"instances\[1\]: input 'x' is missing"),
    ("pair", b'{"instances": [1]}', r"instances\[0\] is not an object with the inputs 'ids', 'mask'"),
    ("pair", b'{"instances": [{"ids": [1], "mask": [true], "extra": 1}]}', r"unknown input 'extra'"),
    ("pair", b'{"inputs": {"ids": [[1.0]], "mask": [[true]]}}', "'ids': expected int64, found a number at"),
    ("pair", b'{"inputs": {"ids": [[1]], "mask": [[1]]}}', "'mask': expected bool, found a whole number"),
    ("pair", b'{"inputs": {"ids": [[1]], "mask": [[true, true]]}}', "'length' is 1 in input 'ids' but 2 in input 'mask'"),
    ("pair", b'{"inputs": {"ids": [[1000]], "mask": [[true]]}}', "'ids': 1000 is outside 0 to 999"),
    ("pair", b'{"inputs": {"ids": [[99999999999999999999]], "mask": [[true]]}}', "found a number|outside"),
    ("pair", b'{"inputs": {"ids": [[18446744073709551615]], "mask": [[true]]}}', "outside 0 to 999"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "message"), BAD_JSON)
def test_wrong_json_is_400_with_the_reason(serve, model, body, message):
    status, answer = serve(model).predict(body)
    assert status == 400
    assert list(answer) == ["error"]
    assert re.search(message, answer["error"]), answer["error"]


RAW, NPY = "application/octet-stream", "application/x-npy"
BAD_TENSORS = [
    (RAW, None, ROWS.tobytes(), "expected the header X-Shape"),
    (RAW, "5;4", ROWS.tobytes(), "X-Shape"),
    (RAW, "-5,-4", ROWS.tobytes(), "X-Shape"),
    (RAW, "5,4", ROWS.tobytes()[:-1], r"shape \[5, 4\] of float32 takes 80 bytes, got 79"),
    (RAW, "999999999999,999999999999", b"", "takes 3999999999992000000000004 bytes, got 0"),
    (RAW, "4,5", ROWS.tobytes(), r"expected shape \[batch, 4\], got \[4, 5\]"),
    (RAW, "0,4", b"", "empty"),
    (RAW, "20", ROWS.tobytes(), r"got \[20\]"),
    (NPY, None, b"", "not an npy file"),
    (NPY, None, b"\x93NUMPY\x01\x00", "not an npy file"),
    (NPY, None, b"\x93NUMPY\x09\x00" + b"v\x00{}", "not an npy file"),
    (NPY, None, npy(ROWS)[:-4], "takes 80 bytes, got 76"),
    (NPY, None, npy(np.array([["a"]])), "expected float32, got an npy file of str"),
    (NPY, None, npy(np.array([[True] * 4])), "expected float32, got bool"),
    (NPY, None, npy(np.array([[1e300] * 4])), "too large for float32"),
    (NPY, None, npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "npy file of object"),
    (NPY, None, npy(np.zeros((0, 4), "float32")), "empty"),
    (NPY, None, npy(ROWS).replace(b"(5, 4)", b"(-5,4)"), "takes|not an npy"),
    (NPY, None, npy(ROWS).replace(b"(5, 4)", b"(5,9**"), "not an npy file"),
]


@pytest.mark.parametrize(("media", "shape", "body", "message"), BAD_TENSORS)
def test_wrong_tensors_are_400_with_the_reason(serve, media, shape, body, message):
    headers = {"content-type": media, **({"x-shape": shape} if shape else {})}
    status, _, answer = serve("linear").ask("POST", "/predict", body, headers)
    assert status == 400
    assert re.search(message, json.loads(answer)["error"]), answer


def test_tensors_need_a_model_with_one_input_and_one_output(serve):
    status, _, answer = serve("pair").ask("POST", "/predict", b"", {"content-type": RAW, "x-shape": "1"})
    assert status == 400
    assert b"'ids', 'mask'" in answer
    status, _, answer = serve("pair").ask("POST", "/predict", b"{}", {**JSON, "accept": NPY})
    assert status == 406
    assert b"'total', 'largest'" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "Application/JSON; charset=UTF-8"}, 200),
        ({**JSON, "content-encoding": "gzip"}, 415),
    ],
)
def test_content_types(serve, headers, status):
    given, _, body = serve("linear").ask("POST", "/predict", b'{"instances": [[1,2,3,4]]}', headers)
    assert given == status, body


def test_timings_and_request_ids(serve):
    def ask(given):
        headers = {**JSON, **({"x-request-id": given} if given else {})}
        return serve("linear").ask("POST", "/predict", b'{"instances": [[1,2,3,4]]}', headers)[1]

    assert ask("abc-123/x")["x-request-id"] == "abc-123/x"
    for unsafe in ("a b", "x" * 129, '"><script>', ""):
        made = ask(unsafe)["x-request-id"]
        assert made != unsafe
        assert len(made) == 24
    timing = ask(None)["server-timing"]
    assert re.fullmatch(r"decode;dur=[\d.]+, queue;dur=[\d.]+, infer;dur=[\d.]+", timing)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/predict", 405, "POST, OPTIONS"),
        ("HEAD", "/predict", 405, "POST, OPTIONS"),
        ("DELETE", "/", 405, "GET, HEAD, OPTIONS"),
        ("TRACE", "/livez", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/predict", 204, "POST, OPTIONS"),
        ("OPTIONS", "*", 204, "GET, HEAD, OPTIONS"),
        ("GET", "/predict/", 404, None),
        ("OPTIONS", "/no", 404, None),
        ("GET", "/%00%ff<script>", 404, None),
    ],
)
def test_methods_and_paths(serve, method, path, status, allow):
    given, headers, body = serve("linear").ask(method, path)
    assert (given, headers.get("allow")) == (status, allow)
    if status != 204 and method != "HEAD":
        assert list(json.loads(body)) == ["error"]


def test_head_gives_the_headers_of_get(serve):
    given = serve("linear").ask("GET", "/openapi.json")
    status, headers, body = serve("linear").ask("HEAD", "/openapi.json")
    assert (status, headers["content-length"], body) == (200, str(len(given[2])), b"")
