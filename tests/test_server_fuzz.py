"""Whatever a client sends, the server answers with a reason, never with 500, and lives on."""

from __future__ import annotations

import collections
import http.client
import importlib.util
import io
import itertools
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import JSON, Server, answers, linear, pair

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALLOWED = {200, 400, 403, 413, 415}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    running = {make.__name__: Server(make(root / make.__name__), max_body=100_000) for make in (linear, pair)}
    yield running
    for server in running.values():
        quietly_ends(server)


def quietly_ends(server):
    assert server.stop() == 0
    assert '"level":"error"' not in "".join(server.log)
    assert "Traceback" not in "".join(server.log)


PLATFORMS = [
    "/v1/models/model:predict", "/invocations", "/models/model/invoke", "/models", "/predictions/model", "/predictions", "/score",
]  # fmt: skip


def send(server, body, headers=JSON, path="/predict"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert response.status in ALLOWED, answer
    if response.status != 200 and path == "/predict":
        assert list(answer) == ["error"]
        assert answer["error"]
        assert "Traceback" not in answer["error"]
    return response.status, answer


numbers = st.one_of(st.integers(-5, 1500), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
leaves = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=5))
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
names = st.sampled_from(["x", "ids", "mask", "z"])
tensors = st.lists(st.lists(leaves, max_size=5) | st.lists(numbers, min_size=4, max_size=4), max_size=4)
contents = st.one_of(
    values,
    st.fixed_dictionaries(
        {"instances": values | tensors | st.lists(st.dictionaries(names, values, max_size=3), max_size=3)}
    ),
    st.fixed_dictionaries({"inputs": values | tensors | st.dictionaries(names, tensors, max_size=3)}),
    st.fixed_dictionaries({"inputs": tensors, "parameters": values}),
)


@FUZZ
@given(content=contents, name=st.sampled_from(["linear", "pair"]))
def test_any_json(servers, content, name):
    send(servers[name], json.dumps(content).encode())


framed = st.fixed_dictionaries(
    {},
    optional={
        "columns": values,
        "data": values | tensors,
        "index": values,
        **dict.fromkeys(["x", "ids", "mask"], tensors),
    },
)
forms = st.sampled_from(
    ["instances", "inputs", "dataframe_split", "dataframe_records", "params", "data", "input_data", "input", "id",
     "signature_name", "parameters", "model_name", "url"]
)  # fmt: skip
asked = contents | tensors | st.dictionaries(forms, values | tensors | framed, min_size=1, max_size=2)


@FUZZ
@given(content=asked, name=st.sampled_from(["linear", "pair"]), path=st.sampled_from(PLATFORMS))
def test_any_json_to_any_platform(servers, content, name, path):
    status, answer = send(servers[name], json.dumps(content).encode(), JSON, path)
    if status != 200:
        assert "Traceback" not in json.dumps(answer)


@FUZZ
@given(
    body=st.binary(max_size=200),
    media=st.sampled_from(["application/json", "application/x-npy", "text/csv", "text/plain", "", "*/*"]),
)
def test_any_bytes(servers, body, media):
    send(servers["linear"], body, {"content-type": media})


@FUZZ
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4), min_size=1
    )
)
def test_good_rows_always_succeed(servers, rows):
    status, answer = send(servers["linear"], json.dumps({"instances": rows}).encode())
    assert status == 200
    assert len(answer["predictions"]) == len(rows)


@FUZZ
@given(
    shape=st.lists(st.integers(0, 9), max_size=4) | st.text(max_size=20).map(lambda text: [text]),
    size=st.integers(0, 200),
)
def test_any_raw_tensor(servers, shape, size):
    header = ",".join(map(str, shape)).encode("utf-8", "replace").decode("latin-1")
    header = "".join(character for character in header if " " <= character <= "~")
    headers = {"content-type": "application/octet-stream", "x-shape": header}
    status, _ = send(servers["linear"], bytes(size), headers)
    if status == 200:
        assert shape[1:] == [4]
        assert size == shape[0] * 16


def damaged(data, draw):
    """Change, drop or add a few bytes."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@FUZZ
@given(data=st.data(), dtype=st.sampled_from(["<f4", ">f8", "?", "<i8", "S3", "<M8[s]", "<c16", "<U2", "f2", "V4"]))
def test_damaged_npy_files(servers, data, dtype):
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 4), dtype))
    whole = stream.getvalue()
    send(servers["linear"], damaged(whole[:128], data.draw) + whole[128:], {"content-type": "application/x-npy"})


@FUZZ
@given(data=st.data(), chunked=st.booleans())
def test_damaged_http(servers, data, chunked):
    body = b'{"instances": [[1,2,3,4]]}'
    framing, payload = (
        (b"Transfer-Encoding: chunked", b"1a\r\n%s\r\n0\r\n\r\n" % body) if chunked else (b"Content-Length: 26", body)
    )
    good = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%s\r\n\r\n%s" % (framing, payload)
    with socket.create_connection(("127.0.0.1", servers["linear"].port), timeout=10) as connection:
        received = b""
        try:
            connection.sendall(damaged(good, data.draw) + good)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
    for status, _, _ in answers(received):
        assert status in {100, 200, 400, 404, 405, 408, 413, 415, 431}
    assert servers["linear"].ask("GET", "/readyz")[0] == 200


@pytest.fixture(scope="module")
def abuse():
    """The clients that benchmarks/serving.py sends by the ten thousand."""
    path = Path(__file__).parents[1] / "benchmarks" / "serving_abuse.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_clients_that_behave_badly(tmp_path, abuse):
    linear(tmp_path / "linear")
    pair(tmp_path / "pair")
    with Server(tmp_path, max_body=100_000, head_timeout=0.1, body_timeout=0.1, idle_timeout=1) as server:
        paths = json.loads(server.ask("GET", "/openapi.json")[2])["paths"]
        routes = [path for path, methods in paths.items() if "post" in methods]
        assert len(routes) > 20
        found = collections.defaultdict(set)
        every = list(itertools.islice(abuse.abuses(0, routes), 300))
        with ThreadPoolExecutor(12) as clients:
            answered = list(clients.map(lambda each: each.play(server.port), every))
        for each, statuses in zip(every, answered, strict=True):
            found[each.kind].update(statuses)
            assert not abuse.wrong(statuses), each
        assert found["values"] >= {200, 400}
        assert found["smuggling"] >= {400}
        assert found["huge"] >= {413, 431}
        assert found["slow"] >= {408}
        assert server.ask("GET", "/readyz")[0] == 200
        quietly_ends(server)


def test_clients_that_leave_before_their_answers_leave_no_error(tmp_path, abuse):
    with Server(linear(tmp_path)) as server:
        request = abuse.post("/predict", json.dumps({"instances": [[1, 2, 3, 4]] * 100}).encode())
        for _ in range(50):
            abuse.Abuse("pipelined", [request * 20], end="reset").play(server.port)
        assert server.ask("GET", "/readyz")[0] == 200
        quietly_ends(server)
