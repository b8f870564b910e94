"""Bearer tokens: who is let in, in which words the others are refused, and how tokens are exchanged."""

from __future__ import annotations

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.server.access import Access
from modelpack.server.faults import StartError, Unproven
from modelpack.server.settings import Settings, describe
from serving import JSON, Server, scaled

ONE, TWO = "first-token-0123456789", "second.token~0123456789=="
ROWS = b'{"instances": [[1]]}'
HEALTH = [
    "/livez", "/healthz", "/health", "/readyz", "/startupz", "/ping", "/health-check", "/v2/health/live",
    "/v2/health/ready", "/vertex-health",
]  # fmt: skip


def bearing(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return JSON | {"authorization": f"{scheme} {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = scaled(tmp_path_factory.mktemp("model"), 2)
    with Server(folder, token=ONE, health_route="/vertex-health") as server:
        yield server


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_known_token_is_let_in(guarded, scheme):
    status, _, body = guarded.ask("POST", "/predict", ROWS, bearing(ONE, scheme))
    assert (status, json.loads(body)["predictions"]) == (200, [[2.0]])


@pytest.mark.parametrize("path", HEALTH)
def test_health_needs_no_token(guarded, path):
    assert guarded.ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/predict", {"error"}),
        ("/v1/models/model:predict", {"error"}),
        ("/v2/models/model/infer", {"error"}),
        ("/invocations", {"error_code", "message"}),
        ("/predictions/model", {"code", "type", "message"}),
        ("/predictions", {"status", "error"}),
        ("/models/model/invoke", {"code", "type", "message"}),
        ("/score", {"error"}),
        ("/v2/repository/models/model/load", {"error"}),
        ("/nothing/here", {"error"}),
    ],
)
def test_each_protocol_asks_for_a_token_in_its_own_words(guarded, path, keys):
    for headers, challenge in [
        (JSON, 'Bearer realm="modelpack"'),
        (JSON | {"authorization": f"Basic {ONE}"}, 'Bearer realm="modelpack"'),
        (bearing(TWO), 'Bearer realm="modelpack", error="invalid_token"'),
    ]:
        status, answer, body = guarded.ask("POST", path, ROWS, headers)
        content = json.loads(body)
        assert (status, answer["www-authenticate"], set(content)) == (401, challenge, keys)
        assert "token" in (content.get("message") or content["error"])
        assert not {ONE, TWO} & set(body.decode().split())
        assert content.get("error_code", "UNAUTHENTICATED") == "UNAUTHENTICATED"
        assert (content.get("code", 401), content.get("type", "InvalidKeyException")) == (401, "InvalidKeyException")


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/metrics", "/v2/models", "/card/model", "/models"])
def test_what_is_served_is_told_to_nobody_else(guarded, path):
    assert guarded.ask("GET", path)[0] == 401
    assert guarded.ask("HEAD", path)[0] == 401
    assert guarded.ask("OPTIONS", path)[0] == 401
    assert guarded.ask("GET", path, headers=bearing(ONE))[0] == 200


def test_a_browser_without_a_token_gets_a_page_that_asks_for_one(guarded):
    status, headers, body = guarded.ask("GET", "/", headers={"accept": "text/html"})
    assert (status, headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert headers["www-authenticate"] == 'Bearer realm="modelpack"'
    assert b"shows a token" in body
    assert guarded.ask("GET", "/card/model", headers={"accept": "text/html"})[2] == body
    assert guarded.ask("GET", "/card/nobody", headers={"accept": "text/html"})[2] == body


def test_the_description_says_where_a_token_is_needed(guarded):
    document = json.loads(guarded.ask("GET", "/openapi.json", headers=bearing(ONE))[2])
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            asks = operation.get("security") == [{"token": []}]
            assert asks == (path not in HEALTH)
            assert asks == ("401" in operation["responses"])


def test_metrics_may_be_open(tmp_path):
    with Server(scaled(tmp_path, 2), token=ONE, open_metrics=1) as server:
        assert server.metric("modelpack_ready") == 1
        assert server.ask("GET", "/")[0] == 401


def test_a_hangup_exchanges_the_tokens_of_a_file(tmp_path):
    secrets = tmp_path / "tokens"
    secrets.write_text(f"{ONE}\n\n")
    with Server(scaled(tmp_path / "model", 2), token_file=secrets) as server:

        def let_in():
            return [server.ask("GET", "/", headers=bearing(token))[0] == 200 for token in (ONE, TWO)]

        assert let_in() == [True, False]
        for text, line, expected in [
            (f"{ONE}\n  {TWO}\r\n", "tokens: 2", [True, True]),
            (TWO, "tokens: 1", [False, True]),
            ("short", "the tokens stay as they are: .*too short", [False, True]),
            ("", "the tokens stay as they are: .*has no token", [False, True]),
        ]:
            secrets.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            server.line(line)
            assert let_in() == expected
        secrets.unlink()
        server.process.send_signal(signal.SIGHUP)
        server.line("cannot be read")
        assert let_in() == [False, True]
    assert not [line for line in server.log if ONE in line or TWO in line]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"token": "ab1"}, "MODELPACK_TOKEN has a token that is too short"),
        ({"token": "no spaces in a token"}, "MODELPACK_TOKEN has a token that is too short or none"),
        ({"token": ONE, "token_file": "/tokens"}, "give one of"),
        ({"token_file": "/there/is/none"}, "/there/is/none cannot be read"),
    ],
)
def test_tokens_that_protect_nothing_prevent_a_start(given, message):
    with pytest.raises(StartError, match=message) as caught:
        Access(Settings(**given))
    assert given.get("token", "/tokens") not in str(caught.value)


def test_a_token_is_shown_nowhere():
    assert ONE not in repr(Settings(token=ONE))
    assert "MODELPACK_TOKEN " in describe()


@given(st.text(max_size=60))
def test_no_other_header_is_let_in(header):
    access = Access(Settings(token=ONE))
    access.check(f"Bearer {ONE}", certified=False)
    if ONE not in header:
        with pytest.raises(Unproven):
            access.check(header, certified=False)
        with pytest.raises(Unproven):
            access.check(f"Bearer {header}", certified=False)
    Access(Settings()).check(header, certified=False)
