"""`/invocations` in the words of MLflow and SageMaker, and what both ask beside it."""

from __future__ import annotations

import io
import json
import re
import signal

import numpy as np
import pytest
import tritonclient.http as triton

from modelpack.server import VERSION
from serving import JSON, Server, described, linear, logarithm, pair, scaled, whole

MAKERS = {"linear": linear, "pair": pair, "whole": whole, "logarithm": logarithm, "scale": lambda at: scaled(at, 2)}
ROWS = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
TRITON = "application/vnd.sagemaker-triton.binary+json"


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Give a server of one model, as these platforms know no other."""
    running = {}

    def start(name):
        if name not in running:
            folder = MAKERS[name](tmp_path_factory.mktemp("models") / name)
            running[name] = Server(folder, max_rows=64, concurrency=2)
        return running[name]

    yield start
    for server in running.values():
        assert server.stop() == 0
        assert "ERROR" not in "".join(server.log)


def post(server, content, media="application/json", accept=""):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"content-type": media} if media else {}
    status, given_back, answer = server.ask(
        "POST", "/invocations", body, headers | ({"accept": accept} if accept else {})
    )
    return status, given_back["content-type"], answer


def predictions(server, content, media="application/json"):
    status, given_back, answer = post(server, content, media)
    assert (status, given_back) == (200, "application/json"), answer
    return json.loads(answer)["predictions"]


def expected(server, rows):
    status, _, answer = server.ask("POST", "/predict", json.dumps({"instances": rows}), JSON)
    assert status == 200
    return json.loads(answer)["predictions"]


def test_every_form_of_mlflow_gives_the_same_predictions(serve):
    server, rows = serve("linear"), ROWS.tolist()
    want = expected(server, rows)
    names = ["a", "b", "c", "d"]
    split = {"columns": names, "data": rows, "index": [0, 1, 2]}
    for content in (
        {"dataframe_split": split},
        {"dataframe_split": {"columns": ["x"], "data": [[row] for row in rows]}},
        {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]},
        {"dataframe_records": [{"x": row} for row in rows], "params": {"k": 1}},
        {"instances": rows},
        {"instances": [{"x": row} for row in rows], "params": None},
        {"inputs": rows},
        {"inputs": {"x": rows}},
    ):
        assert predictions(server, content) == want, content
    text = "\n".join(["a,b,c,d", *(",".join(map(repr, row)) for row in rows)])
    for table in (text, text.partition("\n")[2]):
        assert predictions(server, table.encode(), "text/csv; charset=utf-8") == want


def test_several_inputs_are_columns_of_a_frame(serve):
    frame = {"columns": ["mask", "ids"], "data": [[[True, False], [3, 5]], [[True, True], [7, 2]]]}
    want = [{"total": 3.0, "largest": 5}, {"total": 9.0, "largest": 7}]
    assert predictions(serve("pair"), {"dataframe_split": frame}) == want
    records = [dict(zip(frame["columns"], row, strict=True)) for row in frame["data"]]
    assert predictions(serve("pair"), {"dataframe_records": records}) == want
    columns = {"ids": [[3, 5], [7, 2]], "mask": [[True, False], [True, True]]}
    assert predictions(serve("pair"), {"inputs": columns}) == {"total": [3.0, 9.0], "largest": [5, 7]}
    assert predictions(serve("whole"), {"inputs": {"x": [1, 2], "scale": 2}}) == 6.0


def test_sagemakers_content_types_go_in_and_come_out(serve):
    server = serve("linear")
    want = np.float32(expected(server, ROWS.tolist()))
    stream = io.BytesIO()
    np.save(stream, ROWS)
    bodies = {
        "application/json": json.dumps(ROWS.tolist()).encode(),
        "text/csv": "".join(",".join(map(str, row)) + "\n" for row in ROWS.tolist()).encode(),
        "application/jsonlines": "".join(json.dumps(row) + "\n" for row in ROWS.tolist()).encode(),
        "application/x-npy": stream.getvalue(),
    }
    read = {
        "application/json": lambda body: json.loads(body)["predictions"],
        "text/csv": lambda body: [line.split(",") for line in body.decode().splitlines()],
        "application/jsonlines": lambda body: [json.loads(line) for line in body.splitlines()],
        "application/x-npy": lambda body: np.load(io.BytesIO(body)),
    }
    for media, body in bodies.items():
        for accept, reader in read.items():
            status, given_back, answer = post(server, body, media, accept)
            assert (status, given_back) == (200, accept)
            bare = media == accept == "application/json"
            got = json.loads(answer) if bare else reader(answer)
            np.testing.assert_allclose(np.asarray(got, "float32"), want, rtol=1e-6)


def test_a_bare_array_is_answered_with_a_bare_array(serve):
    assert json.loads(post(serve("scale"), [[1], [2.5]])[2]) == [[2.0], [5.0]]
    rows = [{"ids": [3], "mask": [True]}]
    assert json.loads(post(serve("pair"), rows)[2]) == [{"total": 3.0, "largest": 3}]


def test_what_is_no_number_is_an_empty_cell_and_null(serve):
    assert post(serve("logarithm"), [[1, -1]], accept="text/csv")[2] == b"0.0,\n"
    assert post(serve("logarithm"), [[1, -1]], accept="application/jsonlines")[2] == b"[0.0,null]\n"
    assert predictions(serve("logarithm"), {"instances": [[1, 0]]}) == [[0.0, None]]


@pytest.mark.parametrize("asked", [True, False])
def test_tritons_client_writes_what_sagemaker_passes_on(serve, asked):
    server = serve("linear")
    x = triton.InferInput("x", list(ROWS.shape), "FP32")
    x.set_data_from_numpy(ROWS)
    outputs = [triton.InferRequestedOutput("y", binary_data=asked)]
    body, length = triton.InferenceServerClient.generate_request_body([x], outputs=outputs)
    status, media, answer = post(server, bytes(body), f"{TRITON};json-header-size={length}")
    assert status == 200, answer
    size = int(media.partition("json-header-size=")[2]) if asked else None
    assert media == (f"{TRITON};json-header-size={size}" if asked else "application/json")
    result = triton.InferenceServerClient.parse_response_body(answer, header_length=size)
    np.testing.assert_allclose(result.as_numpy("y"), np.float32(expected(server, ROWS.tolist())), rtol=1e-6)


BAD = [
    ("linear", b"", "application/json", 400, "the body is empty"),
    ("linear", b"{", "application/json", 400, "not JSON"),
    ("linear", b"7", "application/json", 400, "expected a JSON object with one of 'dataframe_split'"),
    ("linear", {}, "application/json", 400, "expected exactly one of .*, got none"),
    ("linear", {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}, "application/json", 400, "got 'instances', 'inputs'"),
    ("linear", {"columns": ["a"], "data": [[1]]}, "application/json", 400, "unknown key 'columns', 'data'"),
    ("linear", {"instances": [[1, 2, 3, 4]], "params": []}, "application/json", 400, "'params' is not an object"),
    ("linear", {"instances": [[1, 2, 3]]}, "application/json", 400, r"expected shape \[batch, 4\], got \[1, 3\]"),
    ("linear", [], "application/json", 400, "'rows' is empty"),
    ("linear", [[1, 2, 3, None]], "application/json", 400, r"found null at \[0, 3\]"),
    ("linear", [[0] * 4] * 65, "application/json", 400, "65 rows"),
    ("linear", {"dataframe_split": []}, "application/json", 400, "'dataframe_split' is not an object of 'columns'"),
    ("linear", {"dataframe_split": {"data": [[1]]}}, "application/json", 400, "'columns' and 'data'"),
    ("linear", {"dataframe_split": {"columns": "abcd", "data": [[1, 2, 3, 4]]}}, "application/json", 400, "not an array of names"),
    ("linear", {"dataframe_split": {"columns": list("abcd"), "data": [1]}}, "application/json", 400, "not an array of rows"),
    ("linear", {"dataframe_split": {"columns": list("abcd"), "data": []}}, "application/json", 400, "has no rows"),
    ("linear", {"dataframe_split": {"columns": list("abcd"), "data": [[1, 2]]}}, "application/json", 400, r"data\[0\] has 2 cells, and there are 4 columns"),
    ("linear", {"dataframe_split": {"columns": ["a"], "data": [[1]]}}, "application/json", 400, "is not one of 1 cells a row"),
    ("linear", {"dataframe_split": {"columns": list("abcd"), "data": [[1, 2, 3, 4]], "index": [1, 2]}}, "application/json", 400, "'index'"),
    ("linear", {"dataframe_split": {"columns": list("abcd"), "data": [[1, 2, 3, "4"]]}}, "application/json", 400, r"found a string at \[0, 3\]"),
    ("linear", {"dataframe_records": {"a": 1}}, "application/json", 400, "not an array of objects"),
    ("linear", {"dataframe_records": []}, "application/json", 400, "has no rows"),
    ("linear", {"dataframe_records": [{"x": [1, 2, 3, 4]}, {"y": 1}]}, "application/json", 400, r"dataframe_records\[1\] has other names than the first: 'y'"),
    ("pair", {"dataframe_records": [{"ids": [1], "z": 1}]}, "application/json", 400, "the columns must be the inputs 'ids', 'mask', each once; got 'ids', 'z'"),
    ("pair", {"dataframe_split": {"columns": ["ids", "mask", "ids"], "data": [[1, True, 1]]}}, "application/json", 400, "each once"),
    ("pair", {"dataframe_split": {"columns": ["ids", "mask"], "data": [[1, True]]}}, "application/json", 400, "not one of 1 cells"),
    ("linear", b"1,2,3\n", "text/csv", 400, "not one of 3 cells"),
    ("linear", b"1,2,3,x\n1,2,3,y\n", "text/csv", 400, "line 2, column 4"),
    ("linear", b"[1, 2, 3, 4]\n[1,\n", "application/jsonlines", 400, "line 2 is not JSON"),
    ("linear", b"\n\n", "application/jsonlines", 400, "'lines' is empty"),
    ("linear", b"no", "application/x-npy", 400, "not an npy file"),
    ("linear", b"{}", TRITON, 400, "needs the parameter json-header-size"),
    ("linear", b"{}", f"{TRITON};json-header-size=7", 400, "the body has 2 bytes"),
    ("linear", b"{}", "", 415, "the content type is none: expected one of 'application/json'"),
    ("linear", b"{}", "text/plain", 415, "'text/plain'"),
    ("linear", b"{}", "application/json; charset=latin-1", 415, "not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "content", "media", "status", "message"), BAD)
def test_wrong_requests_are_refused_in_mlflows_words(serve, model, content, media, status, message):
    given_status, _, answer = post(serve(model), content, media)
    answer = json.loads(answer)
    assert (given_status, answer["error_code"]) == (status, "BAD_REQUEST"), answer
    assert re.search(message, answer["message"]), answer


def test_only_json_carries_several_outputs_of_an_npy_answer(serve):
    status, _, answer = post(serve("pair"), [{"ids": [1], "mask": [True]}], accept="application/x-npy")
    assert (status, json.loads(answer)["error_code"]) == (406, "BAD_REQUEST")
    assert post(serve("pair"), [{"ids": [1], "mask": [True]}], accept="text/csv")[2] == b"1.0,1\n"


def test_probes_version_and_parameters_of_batch_transform(serve):
    server = serve("linear")
    assert server.ask("GET", "/ping")[::2] == (200, b'{"status":"Healthy"}')
    assert server.ask("GET", "/health")[0] == 200
    status, headers, body = server.ask("GET", "/version")
    assert (status, headers["content-type"], body.decode()) == (200, "text/plain; charset=utf-8", VERSION)
    want = {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 32}
    assert json.loads(server.ask("GET", "/execution-parameters")[2]) == want


def test_a_server_that_stops_is_unhealthy_and_a_model_of_several_must_be_named(tmp_path):
    for name in ("one", "two"):
        linear(tmp_path / name, rows=2)
    with Server(tmp_path, drain_delay=20) as own:
        status, _, answer = post(own, [[1]])
        assert (status, json.loads(answer)["message"]) == (
            400,
            "this server has the models 'one', 'two': name one in the path",
        )
        own.process.send_signal(signal.SIGTERM)
        while own.ask("GET", "/readyz")[0] == 200:
            pass
        assert own.ask("GET", "/ping")[::2] == (503, b'{"status":"Unhealthy"}')
        own.process.send_signal(signal.SIGTERM)


def test_a_model_of_fixed_rows_takes_single_records(tmp_path):
    with Server(linear(tmp_path, rows=2), max_body=1000) as own:
        answer = json.loads(own.ask("GET", "/execution-parameters")[2])
    assert (answer["BatchStrategy"], answer["MaxPayloadInMB"]) == ("SINGLE_RECORD", 1)


def test_the_description_takes_what_the_route_takes(serve):
    asked, answered = described(serve("pair"), "/invocations")
    row = {"ids": [3], "mask": [True]}
    frame = {"columns": ["ids", "mask"], "data": [[[3], [True]]]}
    columns = {"ids": [[3]], "mask": [[True]]}
    for content in (
        [row],
        {"instances": [row]},
        {"dataframe_records": [row]},
        {"dataframe_split": frame},
        {"inputs": columns},
    ):
        asked.validate(content)
        status, _, answer = post(serve("pair"), content)
        assert status == 200
        answered.validate(json.loads(answer))
    for content in ({}, {"instances": [[3]]}, {"dataframe_split": [1]}, [3], {"instances": [row], "inputs": columns}):
        assert not asked.is_valid(content)
        status, _, answer = post(serve("pair"), content)
        assert status == 400
        described(serve("pair"), "/invocations", "400")[1].validate(json.loads(answer))
