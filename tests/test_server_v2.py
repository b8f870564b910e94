"""The Open Inference Protocol v2 over REST, asked by Triton's own client and by requests of the specification."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import InferenceServerException

import modelpack
from modelpack.server import VERSION
from modelpack.server.faults import Invalid
from modelpack.server.model import Answer
from modelpack.server.open_inference import DATATYPES, NAMES, Asked, read, write
from modelpack.server.signature import Signature, Tensor
from serving import Server, answers, linear, logarithm, pair, receive_all, scaled, whole

ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
LENGTH = "inference-header-content-length"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for make in (linear, logarithm, pair, whole):
        make(folder / make.__name__)
    scaled(folder / "scale" / "1", 1)
    scaled(folder / "scale" / "2", 2)
    return folder


@pytest.fixture(scope="module")
def server(root):
    with Server(root, max_body=100_000, max_rows=64) as running:
        yield running
        assert running.stop() == 0
    assert "ERROR" not in "".join(running.log)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as asking:
        yield asking


def given_inputs(kind, binary=True, **named):
    """Make the client's input objects of arrays."""
    made = []
    for name, array in named.items():
        made.append(kind.InferInput(name, list(array.shape), NAMES[array.dtype.name]))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def expected(server, name, **named):
    columns = {key: array.tolist() for key, array in named.items()}
    status, _, body = server.ask(
        "POST", f"/predict/{name}", json.dumps({"inputs": columns}), {"content-type": "application/json"}
    )
    assert status == 200
    return json.loads(body)["outputs"]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("sent", [True, False])
def test_tritons_client_gets_what_the_native_route_gives(server, client, sent, asked):
    inputs = given_inputs(triton, sent, x=ROWS)
    outputs = [triton.InferRequestedOutput("y", binary_data=asked)]
    result = client.infer("linear", inputs, outputs=outputs, request_id="mine")
    np.testing.assert_array_equal(result.as_numpy("y"), np.float32(expected(server, "linear", x=ROWS)["y"]))
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "linear", "1")
    assert ("data" in response["outputs"][0]) is not asked


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_and_outputs_of_several_types(server, client, binary):
    ids, mask = np.array([[3, 5], [7, 2]]), np.array([[True, False], [True, True]])
    result = client.infer("pair", given_inputs(triton, binary, mask=mask, ids=ids))
    assert result.as_numpy("total").tolist() == [3, 9]
    assert result.as_numpy("largest").tolist() == [5, 7]
    only = client.infer(
        "pair", given_inputs(triton, binary, mask=mask, ids=ids), outputs=[triton.InferRequestedOutput("largest")]
    )
    assert [entry["name"] for entry in only.get_response()["outputs"]] == ["largest"]


def test_the_path_chooses_the_version(client):
    inputs = given_inputs(triton, x=np.ones((1, 1), "float32"))
    values = [client.infer("scale", inputs, version).as_numpy("y").item() for version in ("", "1", "2")]
    assert values == [2, 1, 2]


def test_scalars_and_nan_travel_as_binary_data(client):
    inputs = given_inputs(triton, x=np.float32([1, 2]), scale=np.array(2, "float32"))
    assert client.infer("whole", inputs).as_numpy("sum").item() == 6
    result = client.infer("logarithm", given_inputs(triton, x=np.float32([[-1, 0]])))
    assert np.isnan(result.as_numpy("y")[0, 0])
    assert result.as_numpy("y")[0, 1] == -np.inf


def test_the_asynchronous_client_too(server):
    async def scene():
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as asking:
            results = await asyncio.gather(
                *(asking.infer("linear", given_inputs(triton_aio, x=ROWS[:rows])) for rows in (1, 2, 3, 4, 5))
            )
            assert await asking.is_model_ready("linear")
        return [result.as_numpy("y") for result in results]

    for rows, got in enumerate(asyncio.run(scene()), 1):
        np.testing.assert_allclose(got, np.float32(expected(server, "linear", x=ROWS[:rows])["y"]), rtol=1e-5)


def test_the_client_learns_about_server_and_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata() == {
        "name": "modelpack",
        "version": modelpack.__version__,
        "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    }
    assert modelpack.__version__ == VERSION
    assert client.get_model_metadata("pair") == {
        "name": "pair",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [-1]},
            {"name": "largest", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert client.get_model_metadata("scale")["versions"] == ["1", "2"]
    assert client.get_model_metadata("scale", "1")["versions"] == ["1"]
    config = client.get_model_config("linear")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert (config["max_batch_size"], "dynamic_batching" in config) == (64, True)
    config = client.get_model_config("whole")
    assert (config["max_batch_size"], [entry["dims"] for entry in config["input"]]) == (0, [[-1], []])


def test_the_repository_is_listed_and_stays_as_it_is(client):
    entries = client.get_model_repository_index()
    assert {"name": "scale", "version": "1", "state": "READY", "reason": ""} in entries
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="MODELPACK_ALLOW_LOADING=1") as refused:
            change("scale")
        assert refused.value.status() == "403"


def test_a_model_is_loaded_and_unloaded_where_that_is_allowed(tmp_path):
    scaled(tmp_path / "models" / "scale" / "1", 1)
    with (
        Server(tmp_path / "models", allow_loading=1) as own,
        triton.InferenceServerClient(f"127.0.0.1:{own.port}") as client,
    ):
        inputs = given_inputs(triton, x=np.ones((1, 1), "float32"))
        scaled(tmp_path / "models" / "scale" / "2", 2)
        client.load_model("scale")
        assert client.infer("scale", inputs).as_numpy("y").item() == 2
        client.unload_model("scale")
        assert not client.is_model_ready("scale")
        assert [entry["state"] for entry in client.get_model_repository_index()] == ["UNAVAILABLE"]
        client.load_model("scale")
        assert client.infer("scale", inputs, "1").as_numpy("y").item() == 1
        with pytest.raises(InferenceServerException, match="'parameters' are not taken"):
            client.load_model("scale", config="{}")


def test_statistics_count_what_was_asked(tmp_path):
    with Server(scaled(tmp_path / "scale", 1)) as own, triton.InferenceServerClient(f"127.0.0.1:{own.port}") as client:
        for rows in (1, 3, 3):
            client.infer("model", given_inputs(triton, x=np.ones((rows, 1), "float32")))
        known = client.get_inference_statistics("model")["model_stats"]
        assert known == client.get_inference_statistics("model", "1")["model_stats"]
        assert known == client.get_inference_statistics()["model_stats"]
    (known,) = known
    assert (known["name"], known["inference_count"], known["execution_count"]) == ("model", 7, 3)
    assert {name: tally["count"] for name, tally in known["inference_stats"].items()} == {
        "success": 3, "fail": 0, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert [(entry["batch_size"], entry["compute_infer"]["count"]) for entry in known["batch_stats"]] == [
        (1, 1),
        (3, 2),
    ]
    assert known["inference_stats"]["success"]["ns"] >= known["inference_stats"]["compute_infer"]["ns"] > 0
    assert known["last_inference"] > 1_700_000_000_000


def test_a_body_without_json_is_the_only_input(server):
    headers = {LENGTH: "0", "content-type": "application/octet-stream"}
    status, given_back, body = server.ask("POST", "/v2/models/linear/infer", ROWS.tobytes(), headers)
    assert status == 200
    head = json.loads(body[: int(given_back[LENGTH])])
    assert head["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [5, 3], "parameters": {"binary_data_size": 60}}
    ]
    got = np.frombuffer(body[int(given_back[LENGTH]) :], "<f4").reshape(5, 3)
    np.testing.assert_array_equal(got, np.float32(expected(server, "linear", x=ROWS)["y"]))
    for model, data, message in [("linear", b"123", "takes"), ("pair", b"", "one input")]:
        status, _, body = server.ask("POST", f"/v2/models/{model}/infer", data, headers)
        assert status == 400
        assert message in json.loads(body)["error"]


def test_answers_in_json_are_flat_and_repeat_no_header(server):
    x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": ROWS[:2].tolist()}
    status, headers, body = server.ask("POST", "/v2/models/linear/infer", json.dumps({"inputs": [x]}))
    assert (status, headers["content-type"], LENGTH in headers) == (200, "application/json", False)
    assert len(json.loads(body)["outputs"][0]["data"]) == 6
    assert "id" not in json.loads(body)


def entry(**changes):
    made = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes
    return {name: value for name, value in made.items() if value is not None}


BAD = [
    (b"", "the body is empty"),
    (b"[]", "expected a JSON object"),
    ({}, "'inputs' is not an array of objects"),
    ({"inputs": [1]}, "'inputs' is not an array of objects"),
    ({"inputs": []}, r"input 'x' is missing \(shape \[batch, 4\], float32\)"),
    ({"inputs": [entry(name=None)]}, r"inputs\[0\] has no name"),
    ({"inputs": [entry(name="z")]}, "unknown input 'z'"),
    ({"inputs": [entry(), entry()]}, "'x' is given twice"),
    ({"inputs": [entry(shape=[1, "4"])]}, "'shape' is not an array of sizes"),
    ({"inputs": [entry(shape=[1, -4])]}, "'shape' is not an array of sizes"),
    ({"inputs": [entry(shape=[1, True])]}, "'shape' is not an array of sizes"),
    ({"inputs": [entry(shape=[1] * 40)]}, "40 dimensions"),
    ({"inputs": [entry(shape=[4])]}, r"expected shape \[batch, 4\], got \[4\]"),
    ({"inputs": [entry(shape=[2, 4])]}, "takes 8 values, got 4"),
    ({"inputs": [entry(shape=[0, 4], data=[])]}, "empty"),
    ({"inputs": [entry(shape=[65, 4], data=[0] * 260)]}, "65 rows, and the limit for one request is 64"),
    ({"inputs": [entry(datatype="FP8")]}, "datatype is 'FP8', expected one of"),
    ({"inputs": [entry(datatype="BYTES", data=["a"])]}, "datatype is 'BYTES', expected 'FP32'"),
    ({"inputs": [entry(datatype="BOOL", data=[True] * 4)]}, "expected float32, got bool"),
    ({"inputs": [entry(datatype="FP64", data=[1e300] * 4)]}, "too large for float32"),
    ({"inputs": [entry(datatype="INT8", data=[1, 2, 3, 400])]}, "400 is outside -128 to 127"),
    ({"inputs": [entry(data="1234")]}, "'data' is not an array"),
    ({"inputs": [entry(data=[[1, 2], 3, 4])]}, "ragged|found"),
    ({"inputs": [entry(data=[1, 2, 3, None])]}, "found null"),
    ({"inputs": [entry(data=None)]}, "either 'data' or the parameter 'binary_data_size'"),
    ({"inputs": [entry(parameters={"binary_data_size": 16})]}, "either 'data' or the parameter"),
    ({"inputs": [entry(data=None, parameters={"binary_data_size": 16})]}, "is 16, and 0 bytes are left"),
    ({"inputs": [entry(data=None, parameters={"binary_data_size": -1})]}, "is -1"),
    ({"inputs": [entry(data=None, parameters={"shared_memory_region": "a"})]}, "shared memory is not served"),
    ({"inputs": [entry(parameters=[])]}, "'parameters' is not an object"),
    ({"inputs": [entry()], "id": 7}, "'id' is not a string"),
    ({"inputs": [entry()], "parameters": {"binary_data_output": 1}}, "'binary_data_output' is not true or false"),
    ({"inputs": [entry()], "outputs": [{"name": "z"}]}, "unknown output 'z': the model's outputs are 'y'"),
    ({"inputs": [entry()], "outputs": [{"name": "y"}, {"name": "y"}]}, "'y' is asked for twice"),
    ({"inputs": [entry()], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "is not served"),
    ({"inputs": [entry()], "outputs": 3}, "'outputs' is not an array of objects"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD)
def test_wrong_requests_are_400_with_the_reason(server, content, message):
    body = content if isinstance(content, bytes) else json.dumps(content)
    status, _, answer = server.ask("POST", "/v2/models/linear/infer", body)
    assert status == 400, answer
    assert list(json.loads(answer)) == ["error"]
    assert re.search(message, json.loads(answer)["error"]), answer


@pytest.mark.parametrize(
    ("length", "message"), [("x", "is 'x'"), ("-1", "is '-1'"), ("9999", "is '9999'"), ("3", "JSON")]
)
def test_wrong_lengths_of_the_header_are_refused(server, length, message):
    body = json.dumps({"inputs": [entry()]})
    status, _, answer = server.ask("POST", "/v2/models/linear/infer", body, {LENGTH: length})
    assert (status, message in json.loads(answer)["error"]) == (400, True)


def test_requests_and_answers_fit_the_description(server):
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    operation = document["paths"]["/v2/models/linear/infer"]["post"]

    def validator(content):
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema)

    asked = validator(operation["requestBody"]["content"])
    good = {"inputs": [entry()], "id": "a", "outputs": [{"name": "y"}]}
    asked.validate(good)
    status, _, body = server.ask("POST", "/v2/models/linear/infer", json.dumps(good))
    assert status == 200
    validator(operation["responses"]["200"]["content"]).validate(json.loads(body))
    for wrong in (entry(name="z"), entry(shape=[1, 5]), entry(shape=[4]), entry(datatype="FP8"), entry(shape=None)):
        assert not asked.is_valid({"inputs": [wrong]})
        assert server.ask("POST", "/v2/models/linear/infer", json.dumps({"inputs": [wrong]}))[0] == 400
    assert not asked.is_valid({"inputs": []})
    kinds = document["components"]["schemas"]["pair.InferRequest"]["properties"]["inputs"]["items"]["oneOf"]
    assert [kind["properties"]["name"]["const"] for kind in kinds] == ["ids", "mask"]


def test_bytes_after_the_last_input_are_refused(server):
    body = json.dumps({"inputs": [entry()]})
    status, _, answer = server.ask("POST", "/v2/models/linear/infer", body + "12", {LENGTH: str(len(body))})
    assert (status, json.loads(answer)["error"]) == (400, "2 bytes follow the last input")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/models", 200),
        ("GET", "/v2/models/linear", 200),
        ("GET", "/v2/models/linear/versions/1/ready", 200),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/linear/versions/9", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/other/stats", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/linear/infer", 405),
        ("GET", "/v2/nothing", 404),
    ],
)
def test_paths(server, method, path, status):
    given_status, _, body = server.ask(method, path)
    assert given_status == status, body


def test_not_ready_is_503(tmp_path):
    import signal

    with Server(linear(tmp_path), drain_delay=20) as own, own.connect() as connection:
        own.process.send_signal(signal.SIGTERM)
        while own.ask("GET", "/readyz")[0] == 200:
            pass
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        ((status, _, body),) = answers(receive_all(connection))
        assert (status, json.loads(body)) == (503, {"ready": False})
        assert own.ask("GET", "/v2/models/model/ready")[0] == 503
        assert own.ask("GET", "/v2/health/live")[0] == 200
        own.process.send_signal(signal.SIGTERM)


@given(data=st.data(), dtype=st.sampled_from(sorted(DATATYPES.values())), binary=st.booleans())
def test_what_is_written_is_read_back_exactly(data, dtype, binary):
    """An answer has the form of a request: turned into one, it must give the same tensors."""
    elements = None if binary or not dtype.startswith("float") else {"allow_nan": False, "allow_infinity": False}
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, max_side=3))
    tensors = {name: data.draw(arrays.arrays(dtype, shape, elements=elements)) for name in ("a", "b")}
    signature = Signature({name: Tensor(name, shape, dtype) for name in tensors}, {})

    class Named:
        name, version = "m", "1"

    body, length = write(Asked({}, "7", dict.fromkeys(tensors, binary)), Answer(tensors, 1, 0, 0), Named)
    size = length or len(body)
    turned = body[:size].replace(b'"outputs"', b'"inputs"')
    asked = read(turned + body[size:], str(len(turned)) if length else "", signature)
    assert (asked.id, length is None) == ("7", not binary)
    for name, array in tensors.items():
        np.testing.assert_array_equal(asked.feed[name], array)
        assert asked.feed[name].dtype == array.dtype


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
entries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", "z"]) | values,
        "shape": st.just([1, 4]) | st.lists(st.integers(-1, 5), max_size=3) | values,
        "datatype": st.sampled_from(sorted(set(NAMES.values()))) | values,
        "data": st.lists(st.integers(0, 1), min_size=4, max_size=4) | values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | values}) | values,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.fixed_dictionaries(
        {"inputs": st.lists(entries, max_size=3) | values},
        optional={"outputs": st.lists(entries, max_size=2) | values, "id": values, "parameters": values},
    ),
    blob=st.binary(max_size=20),
    cut=st.integers(-3, 3),
)
def test_any_request_is_read_or_refused(content, blob, cut):
    signature = Signature({"x": Tensor("x", ("n", 4), "float32")}, {"y": Tensor("y", ("n", 4), "float32")})
    try:
        head = json.dumps(content).encode()
        asked = read(head + blob, str(len(head) + cut), signature)
    except Invalid:
        event("refused")
    else:
        assert set(asked.outputs) == {"y"}
