"""What a body is said to be, on the routes that read JSON; and who may change what is served."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import numpy as np
import pytest
import tritonclient.http.aio as triton

from serving import JSON, Server, linear, scaled

ROWS = [[1, 2, 3, 4]]
V2 = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
ROUTES = {
    "/v2/models/model/infer": V2,
    "/v1/models/model:predict": {"instances": ROWS},
    "/predictions": {"input": {"x": ROWS}},
    "/v2/repository/index": {},
}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(linear(tmp_path_factory.mktemp("model"))) as running:
        yield running


@pytest.mark.parametrize("path", ROUTES)
def test_what_names_no_type_or_json_is_read(server, path):
    for media in ("", *FORM.values(), "application/octet-stream", "application/json; charset=utf-8"):
        status, _, body = server.ask("POST", path, json.dumps(ROUTES[path]), {"content-type": media} if media else {})
        assert status == 200, (media, body)


@pytest.mark.parametrize("path", ROUTES)
def test_what_names_another_type_is_415(server, path):
    others = ("text/plain", "text/csv", "application/x-npy", "image/png", "multipart/form-data; boundary=a")
    for media in (*others, "application/json; charset=latin-1"):
        status, _, body = server.ask("POST", path, json.dumps(ROUTES[path]), {"content-type": media})
        assert status == 415, media
        assert b"expected" in body or b"UTF-8" in body


def test_tritons_asynchronous_client_sends_json_as_bytes(server):
    async def scene():
        async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            given = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.float32(ROWS), binary_data=False)
            wanted = triton.InferRequestedOutput("y", binary_data=False)
            return (await client.infer("model", [given], outputs=[wanted])).as_numpy("y").shape

    assert asyncio.run(scene()) == (1, 3)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_sends_a_form(server):
    url = f"http://127.0.0.1:{server.port}/v2/models/model/infer"
    done = subprocess.run(["curl", "-sf", url, "-d", json.dumps(V2)], capture_output=True, check=True)
    assert json.loads(done.stdout)["outputs"][0]["shape"] == [1, 3]


def test_a_page_from_elsewhere_changes_nothing(tmp_path):
    """Browsers send such a request without asking, to any server that its user can reach."""
    scaled(tmp_path / "scale" / "1", 1)
    scaled(tmp_path / "scale" / "2", 2)
    with Server(tmp_path, allow_loading=1) as own:
        here = f"127.0.0.1:{own.port}"
        changes = [
            ("POST", "/rollback/scale", None),
            ("POST", "/v2/repository/models/scale/unload", None),
            ("POST", "/v2/repository/models/scale/load", None),
            ("POST", "/models", {"model_name": "scale", "url": str(tmp_path / "scale")}),
            ("DELETE", "/models/scale", None),
        ]
        for method, path, content in changes:
            for origin in ("https://elsewhere.example", "null", f"http://{here}.example"):
                body = json.dumps(content) if content else None
                status, _, answer = own.ask(method, path, body, {**JSON, "origin": origin})
                assert (status, b"may not change" in answer) == (403, True), (path, answer)
        asked = own.ask(
            "POST", "/predict/scale", '{"instances": [[1]]}', {**JSON, "origin": "https://elsewhere.example"}
        )
        assert json.loads(asked[2])["model_version"] == "2"
        assert own.ask("POST", "/rollback/scale", None, {"origin": f"http://{here}"})[0] == 200
