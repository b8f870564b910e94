"""Vertex AI, Azure ML, Cloud Run, TorchServe and Cog, asked word for word as their contracts do."""

from __future__ import annotations

import json
import re
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.http as triton

from modelpack.server.exchange import Response
from modelpack.server.faults import StartError
from modelpack.server.router import Protocol, Route, Router
from modelpack.server.settings import Settings
from serving import JSON, Server, described, linear, pair, scaled, whole

MAKERS = {"linear": linear, "pair": pair, "whole": whole, "scale": lambda at: scaled(at, 2)}
PAIR = [{"ids": [3, 5], "mask": [True, False]}, {"ids": [7, 2], "mask": [True, True]}]
PAIRED = [{"total": 3.0, "largest": 5}, {"total": 9.0, "largest": 7}]
COLUMNS = {"ids": [[3, 5], [7, 2]], "mask": [[True, False], [True, True]]}
ROUTES = {
    "predict_route": "/v1/endpoints/7/deployedModels/8:predict",
    "health_route": "/v1/endpoints/7/deployedModels/8",
}
VERTEX = "application/vnd.vertex-ai-triton.binary+json"


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Give a server of one model, as these platforms know no other."""
    running = {}

    def start(name):
        if name not in running:
            folder = MAKERS[name](tmp_path_factory.mktemp("models") / name)
            running[name] = Server(folder, max_rows=64, **ROUTES)
        return running[name]

    yield start
    for server in running.values():
        assert server.stop() == 0
        assert "ERROR" not in "".join(server.log)


def post(server, path, content, headers=JSON):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, _, answer = server.ask("POST", path, body, headers)
    return status, json.loads(answer)


@contextmanager
def draining(server):
    """Ask a server to stop, and let it answer until then."""
    server.process.send_signal(signal.SIGTERM)
    while server.ask("GET", "/readyz")[0] == 200:
        pass
    yield
    server.process.send_signal(signal.SIGTERM)


def test_vertex_asks_where_its_environment_said(serve):
    route = ROUTES["predict_route"]
    assert post(serve("pair"), route, {"instances": PAIR, "parameters": {"k": 1}}) == (200, {"predictions": PAIRED})
    assert serve("pair").ask("GET", ROUTES["health_route"])[0] == 200
    headers = {"content-type": "text/csv"}
    assert post(serve("scale"), route, b"1\n2.5\n", headers)[1]["predictions"] == [[2.0], [5.0]]


def test_vertex_passes_on_what_tritons_client_writes(serve):
    x = triton.InferInput("x", [2, 1], "FP32")
    x.set_data_from_numpy(np.float32([[1], [2.5]]))
    body, length = triton.InferenceServerClient.generate_request_body([x], outputs=[triton.InferRequestedOutput("y")])
    headers = {"content-type": f"{VERTEX};json-header-size={length}"}
    status, given, answer = serve("scale").ask("POST", ROUTES["predict_route"], bytes(body), headers)
    assert status == 200
    size = int(given["content-type"].removeprefix(f"{VERTEX};json-header-size="))
    result = triton.InferenceServerClient.parse_response_body(answer, header_length=size)
    assert result.as_numpy("y").tolist() == [[2.0], [5.0]]


def test_vertex_may_name_a_model_in_tritons_header(tmp_path):
    for version in (1, 2):
        scaled(tmp_path / "scale" / str(version), version)
    linear(tmp_path / "linear")
    content = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [3]}]}
    x = triton.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.float32([[3]]))
    body, length = triton.InferenceServerClient.generate_request_body([x])
    with Server(tmp_path, predict_route="/p") as own:
        for path, want in (("v2/models/scale/infer", 6), ("/v2/models/scale/versions/1/infer", 3)):
            named = {"x-vertex-ai-triton-redirect": path}
            assert post(own, "/p", content, JSON | named)[1]["outputs"][0]["data"] == [want]
            binary = {"content-type": f"{VERTEX};json-header-size={length}"}
            status, _, answer = own.ask("POST", "/p", bytes(body), binary | named)
            assert (status, np.frombuffer(answer[-4:], "<f4")[0]) == (200, want)
        status, answer = post(own, "/p", content, JSON | {"x-vertex-ai-triton-redirect": "v2/models/scale/load"})
        assert (status, "'v2/models/scale/load': expected v2/models" in answer["error"]) == (400, True)
        assert post(own, "/p", content, JSON | {"x-vertex-ai-triton-redirect": "v2/models/no/infer"})[0] == 404


def test_the_platforms_variables_set_routes():
    environment = {"AIP_PREDICT_ROUTE": "/p", "AIP_HEALTH_ROUTE": "/h", "AIP_HTTP_PORT": "9"}
    settings = Settings.read(environment)
    assert (settings.predict_route, settings.health_route, settings.port) == ("/p", "/h", 9)
    assert Settings.read({**environment, "MODELPACK_PREDICT_ROUTE": "/q"}).predict_route == "/q"
    for wrong in ("p", "/a b", "/{model}", "/a?b", "http://a/b"):
        with pytest.raises(StartError, match=re.escape(f"the route '{wrong}' is not a plain path")):
            Settings.read({"AIP_PREDICT_ROUTE": wrong})


@pytest.mark.parametrize("route", ["/predict", "/invocations", "/"])
def test_a_route_of_the_environment_goes_before_others(tmp_path, route):
    scaled(tmp_path / "scale", 2)
    with Server(tmp_path / "scale", predict_route=route, health_route="/health", drain_delay=20) as own:
        assert post(own, route, {"instances": [[1]]}) == (200, {"predictions": [[2.0]]})
        assert own.ask("GET", "/health")[2] == b'{"ready":true}'
        document = json.loads(own.ask("GET", "/openapi.json")[2])
        assert document["paths"][route]["post"]["tags"] == ["vertex"]
        with draining(own):
            assert own.ask("GET", "/health")[0] == 503
            assert own.ask("GET", "/livez")[0] == 200


def test_protocols_that_go_first_take_paths_and_others_may_not():
    async def answer(_service, _request):
        return Response(200, b"")

    late, early = (
        Protocol("late", (Route("POST", "/a", answer),)),
        Protocol("early", (Route("GET", "/a", answer),), first=True),
    )
    for order in ([late, early], [early, late]):
        place, _ = Router(order).find("/a")
        assert (place.protocol.name, list(place.methods)) == ("early", ["GET"])
    with pytest.raises(StartError, match="belongs to late and to third"):
        Router([late, Protocol("third", late.routes)])


def test_azure_scores_in_the_forms_of_scripts_and_of_mlflow(serve):
    assert post(serve("scale"), "/score", {"data": [[1], [2.5]]}) == (200, [[2.0], [5.0]])
    assert post(serve("pair"), "/score", {"input_data": PAIR, "params": {}}) == (200, PAIRED)
    frame = {"columns": ["ids", "mask"], "index": [0, 1], "data": [[[3, 5], [True, False]], [[7, 2], [True, True]]]}
    assert post(serve("pair"), "/score", {"input_data": frame}) == (200, PAIRED)
    assert post(serve("pair"), "/score", {"input_data": COLUMNS}) == (200, {"total": [3.0, 9.0], "largest": [5, 7]})
    assert post(serve("whole"), "/score", {"input_data": {"x": [1, 2], "scale": 2}}) == (200, 6.0)
    assert post(serve("scale"), "/score", b"1\n", {"content-type": "text/csv"})[1]["predictions"] == [[2.0]]


def test_torchserve_takes_one_example_a_request(serve):
    assert post(serve("scale"), "/predictions/model", [2.5], {}) == (200, [5.0])
    assert post(serve("scale"), "/predictions/model/1", {"x": [1]}) == (200, [2.0])
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert post(serve("pair"), "/predictions/model", PAIR[0], form) == (200, PAIRED[0])
    assert post(serve("pair"), "/predictions/model", {"instances": PAIR}) == (200, {"predictions": PAIRED})
    assert post(serve("scale"), "/predictions/model", b"1\n", {"content-type": "text/csv"})[1]["predictions"] == [[2.0]]


def test_cog_names_inputs_and_says_what_became_of_them(serve):
    status, answer = post(serve("pair"), "/predictions", {"input": COLUMNS, "id": "mine"})
    assert (status, answer["status"], answer["id"]) == (200, "succeeded", "mine")
    assert answer["output"] == {"total": [3.0, 9.0], "largest": [5, 7]}
    assert 0 < answer["metrics"]["predict_time"] < 60
    status, answer = post(serve("scale"), "/predictions", {"input": {"x": [[1]]}}, {})
    assert (status, answer["output"], "id" in answer) == (200, [[2.0]], False)
    status, _, body = serve("scale").ask("GET", "/health-check")
    assert (status, json.loads(body)) == (200, {"status": "READY", "setup": {"status": "succeeded"}})


BAD = [
    ("pair", ROUTES["predict_route"], {"inputs": COLUMNS}, 400, "error", r"send rows"),
    ("pair", ROUTES["predict_route"], {"instances": PAIR, "parameters": 1}, 400, "error", "'parameters' is not an object"),
    ("pair", ROUTES["predict_route"], {"instances": [{"ids": [1]}]}, 400, "error", r"instances\[0\]: input 'mask' is missing"),
    ("pair", "/score", [1], 400, "error", "expected a JSON object"),
    ("pair", "/score", {}, 400, "error", "expected exactly one of 'data', 'input_data'"),
    ("pair", "/score", {"data": PAIR, "method": "predict"}, 400, "error", "unknown key 'method'"),
    ("pair", "/score", {"data": PAIR, "params": 1}, 400, "error", "'params' is not an object"),
    ("pair", "/score", {"data": 1}, 400, "error", "'data' is not an array of rows"),
    ("pair", "/score", {"input_data": 1}, 400, "error", "'input_data' is not an object with the inputs"),
    ("pair", "/score", {"input_data": {"columns": ["a"], "data": [[1]]}}, 400, "error", "the columns must be the inputs"),
    ("pair", "/predictions/model", {"ids": [1]}, 400, "message", r"row\[0\]: input 'mask' is missing"),
    ("pair", "/predictions/model", [1], 400, "message", r"row\[0\] is not an object"),
    ("scale", "/predictions/model", [[1], [2]], 400, "message", "more than 2 nested arrays|shape"),
    ("scale", "/predictions/model", b"", 400, "message", "the body is empty"),
    ("scale", "/predictions/other", [1], 404, "message", "no model 'other'"),
    ("scale", "/predictions/model/9", [1], 404, "message", "no version '9'"),
    ("scale", "/predictions", [1], 400, "error", '{"input": {...}}'),
    ("scale", "/predictions", {"input": [[1]]}, 400, "error", "inputs by name"),
    ("scale", "/predictions", {"input": {"z": 1}}, 400, "error", "'input': unknown input 'z'"),
    ("scale", "/predictions", {"input": {}}, 400, "error", "'input': input 'x' is missing"),
    ("scale", "/predictions", {"input": {"x": [[1]]}, "webhook": "http://a"}, 400, "error", "'webhook': this server calls nobody"),
    ("scale", "/predictions", {"input": {"x": [[1]]}, "seed": 1}, 400, "error", "unknown key 'seed'"),
    ("scale", "/predictions", {"input": {"x": [[1]]}, "id": 1}, 400, "error", "'id' is not a string"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "path", "content", "status", "key", "message"), BAD)
def test_wrong_requests_are_refused_in_the_platforms_words(serve, model, path, content, status, key, message):
    given_status, answer = post(serve(model), path, content)
    assert given_status == status, answer
    assert re.search(message, answer[key]), answer
    rest = {name: value for name, value in answer.items() if name != key}
    if path == "/predictions":
        assert rest == {"status": "failed"}
    elif key == "message":
        kind = {400: "BadRequestException", 404: "ModelNotFoundException"}[status]
        assert rest == {"code": status, "type": kind}
    else:
        assert rest == {}


def test_a_form_with_files_is_said_not_to_be_read(serve):
    status, answer = post(
        serve("scale"), "/predictions/model", b"--a", {"content-type": "multipart/form-data; boundary=a"}
    )
    assert (status, answer["code"], "send the example itself" in answer["message"]) == (415, 415, True)


def test_cog_gives_no_stream_of_events(serve):
    status, answer = post(
        serve("scale"), "/predictions", {"input": {"x": [[1]]}}, JSON | {"accept": "text/event-stream"}
    )
    assert (status, answer["status"]) == (406, "failed")


def test_a_server_that_stops_takes_no_more_of_cogs_work(tmp_path):
    scaled(tmp_path / "scale", 2)
    with Server(tmp_path / "scale", drain_delay=20) as own, draining(own):
        assert json.loads(own.ask("GET", "/health-check")[2])["status"] == "BUSY"


def test_sagemaker_runs_images_with_a_word(tmp_path):
    import sys

    scaled(tmp_path / "scale", 2)
    with Server(tmp_path / "scale", command=[sys.executable, "-m", "modelpack.server", "serve"]) as own:
        assert own.ask("GET", "/ping")[0] == 200


@pytest.mark.parametrize(
    ("path", "good", "wrong"),
    [
        (ROUTES["predict_route"], [{"instances": PAIR}], [{"inputs": COLUMNS}, {"instances": [[1]]}]),
        ("/score", [{"data": PAIR}, {"input_data": COLUMNS}], [{}, {"data": [[1]]}, {"input_data": 1}]),
        ("/predictions/model", [PAIR[0], {"instances": PAIR}], [PAIR, {"ids": [1]}]),
        ("/predictions", [{"input": COLUMNS}, {"input": COLUMNS, "id": "a"}], [{}, {"input": {"ids": [[1]]}}]),
    ],
)
def test_descriptions_take_what_the_routes_take(serve, path, good, wrong):
    asked, answered = described(serve("pair"), path)
    for content in good:
        asked.validate(content)
        status, answer = post(serve("pair"), path, content)
        assert status == 200
        answered.validate(answer)
    _, refused = described(serve("pair"), path, "400")
    for content in wrong:
        assert not asked.is_valid(content), content
        status, answer = post(serve("pair"), path, content)
        assert status == 400
        refused.validate(answer)


def test_cogs_clients_find_input_and_output(serve):
    schemas = json.loads(serve("pair").ask("GET", "/openapi.json")[2])["components"]["schemas"]
    assert (list(schemas["Input"]["properties"]), list(schemas["Output"]["properties"])) == (
        ["ids", "mask"],
        ["total", "largest"],
    )
