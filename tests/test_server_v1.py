"""KServe v1 and TensorFlow Serving over REST, asked word for word as their documents do."""

from __future__ import annotations

import json
import re
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from modelpack.server.faults import Invalid
from modelpack.server.protocols.v1 import _holds_bytes
from modelpack.server.rows import from_either
from modelpack.server.signature import Signature, Tensor
from serving import Server, described, linear, pair, scaled, whole


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for make in (linear, pair, whole):
        make(root / make.__name__)
    scaled(root / "scale" / "1", 1)
    scaled(root / "scale" / "2", 2)
    with Server(root, max_rows=64) as running:
        yield running
        assert running.stop() == 0
    assert "ERROR" not in "".join(running.log)


def post(server, path, content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, _, answer = server.ask("POST", f"/v1/models/{path}", body)
    return status, json.loads(answer)


def get(server, path):
    status, _, answer = server.ask("GET", path)
    return status, json.loads(answer)


def test_rows_give_predictions(server):
    assert post(server, "scale:predict", {"instances": [[1], [2.5]]}) == (200, {"predictions": [[2.0], [5.0]]})
    assert post(server, "scale/versions/1:predict", {"instances": [{"x": [3]}]}) == (200, {"predictions": [[3.0]]})
    rows = [{"ids": [3, 5], "mask": [True, False]}, {"ids": [7, 2], "mask": [True, True]}]
    assert post(server, "pair:predict", {"signature_name": "serving_default", "instances": rows}) == (
        200,
        {"predictions": [{"total": 3.0, "largest": 5}, {"total": 9.0, "largest": 7}]},
    )


def test_columns_give_outputs_and_a_lone_one_has_no_name(server):
    assert post(server, "scale:predict", {"inputs": {"x": [[1], [2.5]]}}) == (200, {"outputs": [[2.0], [5.0]]})
    assert post(server, "scale:predict", {"inputs": [[1]]}) == (200, {"outputs": [[2.0]]})
    columns = {"ids": [[3, 5]], "mask": [[True, True]]}
    assert post(server, "pair:predict", {"inputs": columns}) == (200, {"outputs": {"total": [8.0], "largest": [5]}})
    assert post(server, "whole:predict", {"inputs": {"x": [1, 2], "scale": 2}}) == (200, {"outputs": 6.0})


BAD = [
    ("scale", b"", 400, "the body is empty"),
    ("scale", b"[1]", 400, "expected a JSON object"),
    ("scale", {}, 400, "either 'instances' .rows. or 'inputs'"),
    ("scale", {"instances": [[1]], "inputs": [[1]]}, 400, "exactly one of them"),
    ("scale", {"instances": [[1]], "key": 1}, 400, "unknown key 'key'"),
    ("scale", {"instances": []}, 400, "empty"),
    ("scale", {"instances": {"x": [[1]]}}, 400, "not an array of rows"),
    ("scale", {"instances": [[1, 2]]}, 400, r"expected shape \[batch, 1\], got \[1, 2\]"),
    ("scale", {"instances": [["1"]]}, 400, "found a string"),
    ("scale", {"instances": [[1]], "signature_name": "other"}, 400, "no signature 'other': there is only 'serving_default'"),
    ("scale", {"instances": [[1]], "signature_name": 7}, 400, "no signature '7'"),
    ("scale", {"instances": [{"b64": "AAAA"}]}, 400, r"bytes \({\"b64\": ...}\) are not taken: the inputs are 'x'"),
    ("scale", {"instances": [{"x": {"b64": "AAAA"}}]}, 400, "bytes"),
    ("scale", {"inputs": {"x": [{"b64": "AAAA"}]}}, 400, "bytes"),
    ("scale", {"instances": [[0]] * 65}, 400, "65 rows, and the limit for one request is 64"),
    ("pair", {"instances": [{"ids": [1]}]}, 400, "input 'mask' is missing"),
    ("whole", {"instances": [1]}, 400, "send columns"),
    ("none", {"instances": [[1]]}, 404, "no model 'none'"),
    ("scale/versions/9", {"instances": [[1]]}, 404, "no version '9'"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "content", "status", "message"), BAD)
def test_wrong_requests_are_refused_with_the_reason(server, model, content, status, message):
    given_status, answer = post(server, f"{model}:predict", content)
    assert (given_status, list(answer)) == (status, ["error"])
    assert re.search(message, answer["error"]), answer


@pytest.mark.parametrize("method", ["explain", "classify", "regress"])
def test_other_methods_are_said_not_to_be_there(server, method):
    status, answer = post(server, f"scale:{method}", {"instances": [[1]]})
    assert (status, answer["error"]) == (501, f"'{method}' is not served: models answer to 'predict'")


def test_the_status_is_that_of_both_protocols(server):
    assert get(server, "/v1/models") == (200, {"models": ["linear", "pair", "scale", "whole"]})
    fine = {"error_code": "OK", "error_message": ""}
    states = [{"version": version, "state": "AVAILABLE", "status": fine} for version in ("1", "2")]
    assert get(server, "/v1/models/scale") == (
        200,
        {"name": "scale", "ready": True, "model_version_status": states},
    )
    assert get(server, "/v1/models/scale/versions/1")[1]["model_version_status"] == states[:1]
    for path in ("/v1/models/none", "/v1/models/scale/versions/9", "/v1/models/none/metadata"):
        assert get(server, path)[0] == 404


def test_the_root_says_that_the_server_is_alive(server, tmp_path):
    """KServe's own client asks so."""
    assert get(server, "/")[1]["status"] == "alive"
    with Server(scaled(tmp_path / "scale", 2)) as own:
        answer = get(own, "/")[1]
        assert (answer["status"], answer["name"]) == ("alive", "model")
        assert "status" not in get(own, "/card/model")[1]


def test_metadata_are_tensorflow_servings(server):
    status, answer = get(server, "/v1/models/pair/metadata")
    assert (status, answer["model_spec"]) == (200, {"name": "pair", "signature_name": "", "version": "1"})
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    free = {"size": "-1", "name": ""}
    assert signature["inputs"]["ids"] == {
        "dtype": "DT_INT64", "tensor_shape": {"dim": [free, free], "unknown_rank": False}, "name": "ids",
    }  # fmt: skip
    assert (signature["inputs"]["mask"]["dtype"], signature["outputs"]["total"]["dtype"]) == ("DT_BOOL", "DT_FLOAT")
    answer = get(server, "/v1/models/scale/versions/1/metadata")[1]
    assert answer["model_spec"]["version"] == "1"
    (tensor,) = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"].values()
    assert [entry["size"] for entry in tensor["tensor_shape"]["dim"]] == ["-1", "1"]


def test_a_server_that_stops_says_503(tmp_path):
    with Server(scaled(tmp_path / "scale", 2), drain_delay=20) as own:
        assert post(own, "model:predict", {"instances": [[1]]}) == (200, {"predictions": [[2.0]]})
        own.process.send_signal(signal.SIGTERM)
        while own.ask("GET", "/readyz")[0] == 200:
            pass
        status, answer = get(own, "/v1/models/model")
        assert (status, answer["ready"]) == (503, False)
        own.process.send_signal(signal.SIGTERM)


def test_the_description_takes_what_the_route_takes(server):
    asked, answered = described(server, "/v1/models/pair:predict")
    good = [
        {"instances": [{"ids": [3], "mask": [True]}], "signature_name": "serving_default"},
        {"inputs": {"ids": [[3]], "mask": [[True]]}},
    ]
    for content in good:
        asked.validate(content)
        status, answer = post(server, "pair:predict", content)
        assert status == 200
        answered.validate(answer)
    for content in ({"instances": [[3]]}, {"inputs": {"ids": [[3]]}}, {**good[0], **good[1]}, {"instances": []}):
        assert not asked.is_valid(content)
        assert post(server, "pair:predict", content)[0] == 400


def test_the_description_knows_what_a_float_can_hold_and_no_refusals(server):
    asked, _ = described(server, "/v1/models/scale:predict")
    for content in ({"instances": [[1e39]]}, {"instances": [[1]], "signature_name": "other"}):
        assert not asked.is_valid(content)
        assert post(server, "scale:predict", content)[0] == 400
    largest = {"instances": [[float(np.finfo("float32").max)]], "signature_name": "serving_default"}
    asked.validate(largest)
    assert post(server, "scale:predict", largest) == (200, {"predictions": [[None]]})  # twice that is infinite
    assert not [path for path in get(server, "/openapi.json")[1]["paths"] if path.endswith(":explain")]


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
names = st.sampled_from(["x", "b64", "z"]) | st.text(max_size=3)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=2))
SIGNATURE = Signature({"x": Tensor("x", ("n", 2), "float32")}, {"y": Tensor("y", ("n", 2), "float32")})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), values) | values)
def test_any_request_is_read_or_refused(content):
    assert _holds_bytes(content) is any(
        f'{{"b64": {json.dumps(text)}}}' in json.dumps(content) for text in _texts(content)
    )
    try:
        feed, _ = from_either(content, SIGNATURE, ("signature_name",))
    except Invalid:
        event("refused")
    else:
        assert list(feed) == ["x"]


def _texts(value):
    """Every text that is a value somewhere inside."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=1
    )
)
def test_rows_and_columns_are_the_same_tensor(rows):
    """However a request spells them."""
    want = np.array(rows, "float32")
    named = [{"x": row} for row in rows]
    for content in ({"instances": rows}, {"instances": named}, {"inputs": rows}, {"inputs": {"x": rows}}):
        feed, by_rows = from_either(content, SIGNATURE)
        np.testing.assert_array_equal(feed["x"], want)
        assert by_rows is ("instances" in content)
