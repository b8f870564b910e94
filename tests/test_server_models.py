"""`/models`: SageMaker loads and unloads models in a running server, and TorchServe describes them."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from modelpack.server import memory
from modelpack.server.faults import StartError
from modelpack.server.settings import Settings
from serving import JSON, Server, linear, scaled


def ask(server, method, path, content=None):
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    status, _, answer = server.ask(method, path, body, JSON)
    return status, json.loads(answer)


@pytest.fixture
def empty(tmp_path):
    """Give a server that was started before there was any model."""
    (tmp_path / "models").mkdir()
    with Server(tmp_path / "models", allow_loading=1) as running:
        yield running
        assert running.stop() == 0
    assert "ERROR" not in "".join(running.log)


def test_models_come_and_go_as_sagemaker_asks(empty, tmp_path):
    assert ask(empty, "GET", "/ping") == (200, {"status": "Healthy"})
    assert ask(empty, "GET", "/models") == (200, {"models": []})
    assert ask(empty, "POST", "/invocations", [[1]])[0] == 404
    assert [ask(empty, "GET", path)[0] for path in ("/", "/openapi.json", "/readyz", "/v2/models")] == [200] * 4
    urls = {}
    for name, factor in (("one", 2), ("two", 3)):
        urls[name] = str(scaled(tmp_path / "models" / name / "model", factor))
        assert ask(empty, "POST", "/models", {"model_name": name, "url": urls[name]})[0] == 200
    entries = [{"modelName": name, "modelUrl": url} for name, url in urls.items()]
    assert ask(empty, "GET", "/models") == (200, {"models": entries})
    assert ask(empty, "GET", "/models/two") == (200, entries[1])
    for name, want in (("one", 2.0), ("two", 3.0)):
        headers = JSON | {"x-amzn-sagemaker-target-model": f"{name}.tar.gz"}
        status, _, answer = empty.ask("POST", f"/models/{name}/invoke", b"[[1]]", headers)
        assert (status, json.loads(answer)) == (200, [[want]])
    status, answer = ask(empty, "POST", "/models", {"model_name": "one", "url": urls["one"]})
    assert (status, answer["message"]) == (409, "model 'one' is loaded already")
    assert answer["type"] == "ConflictStatusException"
    assert ask(empty, "PUT", "/models", {})[1]["type"] == "MethodNotAllowedException"
    assert ask(empty, "DELETE", "/models/one")[0] == 200
    shutil.rmtree(tmp_path / "models" / "one")
    for method, path in (("DELETE", "/models/one"), ("GET", "/models/one"), ("POST", "/models/one/invoke")):
        status, answer = ask(empty, method, path, [[1]])
        assert (status, answer["code"], answer["type"]) == (404, 404, "ModelNotFoundException")
    assert ask(empty, "POST", "/models/two/invoke", {"instances": [[1]]}) == (200, {"predictions": [[3.0]]})


def test_only_a_models_own_directory_is_loaded(empty, tmp_path):
    scaled(tmp_path / "elsewhere", 2)
    scaled(tmp_path / "models" / "one" / "model", 2)
    good = str(tmp_path / "models" / "one" / "model")
    for content, message in (
        (b"", "the body is empty"),
        ([], "two texts"),
        ({"model_name": "one"}, "two texts"),
        ({"model_name": "one", "url": 1}, "two texts"),
        ({"model_name": "one", "url": str(tmp_path / "elsewhere")}, "model 'one' is loaded from .*/models/one' only"),
        ({"model_name": "two", "url": good}, "model 'two' is loaded from"),
        ({"model_name": "../elsewhere", "url": str(tmp_path / "elsewhere")}, "only"),
        ({"model_name": "..", "url": str(tmp_path)}, "only"),
        ({"model_name": "", "url": str(tmp_path / "models")}, "only"),
        ({"model_name": ".one", "url": str(tmp_path / "models" / ".one")}, "only"),
        ({"model_name": "a\0b", "url": "a\0b"}, "only"),
        ({"model_name": "a" * 300, "url": "a"}, "only"),
        ({"model_name": "one", "url": "a\0b"}, "only"),
    ):
        status, answer = ask(empty, "POST", "/models", content)
        assert (status, answer["code"], answer["type"]) == (400, 400, "BadRequestException"), answer
        assert re.search(message, answer["message"]), answer
    status, _, answer = empty.ask("POST", "/models", json.dumps({"model_name": "one", "url": good}))
    assert (status, json.loads(answer)["message"]) == (415, "the content type is none: expected 'application/json'")
    assert ask(empty, "POST", "/models", {"model_name": "none", "url": str(tmp_path / "models" / "none")})[0] == 404
    (tmp_path / "models" / "one" / "model" / "model.onnx").write_bytes(b"no model")
    assert ask(empty, "POST", "/models", {"model_name": "one", "url": good})[0] == 400
    assert ask(empty, "GET", "/models") == (200, {"models": []})


def test_a_model_that_memory_cannot_hold_is_507(empty, tmp_path):
    folder = scaled(tmp_path / "models" / "big" / "model", 2)
    with (folder / "weights").open("wb") as sparse:
        sparse.truncate(2**43)
    status, answer = ask(empty, "POST", "/models", {"model_name": "big", "url": str(folder)})
    assert (status, answer["code"]) == (507, 507)
    assert re.search(r"model 'big' takes 16777217 MiB to load, and \d+ MiB are free: unload", answer["message"])
    (folder / "weights").unlink()
    assert ask(empty, "POST", "/models", {"model_name": "big", "url": str(folder)})[0] == 200


def test_nothing_changes_where_loading_is_not_allowed(tmp_path):
    url = str(scaled(tmp_path / "one", 2))
    with Server(tmp_path) as own:
        for method, path in (("POST", "/models"), ("DELETE", "/models/one")):
            status, answer = ask(own, method, path, {"model_name": "one", "url": url})
            assert (status, answer["type"]) == (403, "ForbiddenException")
            assert "MODELPACK_ALLOW_LOADING=1" in answer["message"]
        assert ask(own, "GET", "/models") == (200, {"models": [{"modelName": "one", "modelUrl": url}]})


def test_without_that_a_server_needs_a_model(tmp_path):
    from modelpack.server.catalog import Catalog

    with pytest.raises(StartError, match="signature cannot be read"):
        Catalog(Settings(model=str(tmp_path)), None)
    assert Catalog(Settings(model=str(tmp_path), allow_loading=1), None).models == []


def test_torchserve_describes_versions(tmp_path):
    for version in (1, 2):
        scaled(tmp_path / "scale" / str(version), version)
    linear(tmp_path / "linear")
    with Server(tmp_path, concurrency=2, queue=9) as own:
        status, (entry,) = ask(own, "GET", "/models/scale/1")
        assert (status, entry["modelName"], entry["modelVersion"]) == (200, "scale", "1")
        assert (entry["minWorkers"], entry["batchSize"], entry["maxBatchDelay"]) == (2, 32, 0)
        assert entry["workers"] == [{"id": "0", "status": "READY"}, {"id": "1", "status": "READY"}]
        assert entry["jobQueueStatus"] == {"remainingCapacity": 9, "pendingRequests": 0}
        assert [entry["modelVersion"] for entry in ask(own, "GET", "/models/scale/all")[1]] == ["1", "2"]
        for path in ("/models/scale/9", "/models/none/all", "/models/none"):
            assert ask(own, "GET", path)[0] == 404


def write(root, **files):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("machine", "groups", "left"),
    [
        ("MemTotal: 9 kB\nMemAvailable:   100 kB\n", {}, 102400),
        ("MemAvailable: 100 kB\n", {"a": {"memory__max": "1000", "memory__current": "400"}}, 600),
        ("", {"a": {"memory__max": "1000", "memory__current": "900", "memory__stat": "file 9\ninactive_file 300\n"}}, 400),
        ("", {"": {"memory__max": "700", "memory__current": "0"}, "a": {"memory__max": "max", "memory__current": "5"}}, 700),
        ("", {"memory/a": {"memory__limit_in_bytes": "50", "memory__usage_in_bytes": "20", "memory__stat": "total_inactive_file 1"}}, 31),
        ("", {"a": {"memory__max": "10", "memory__current": "20"}}, 0),
        ("", {}, 2**62),
    ],
)  # fmt: skip
def test_free_memory_is_what_the_tightest_limit_leaves(tmp_path, machine, groups, left):
    for path, files in groups.items():
        write(tmp_path / path, **files)
    write(tmp_path, own="0::/a\n", machine=machine)
    assert memory.free(tmp_path, tmp_path / "own", tmp_path / "machine") == left


def test_this_machine_has_some_memory():
    assert 0 < memory.free() < 2**62
