"""The server's log: its forms and levels, a line for each request, and the traces that requests belong to."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.server import logs, tracing
from modelpack.server.faults import StartError
from modelpack.server.settings import Settings
from serving import JSON, Server, linear, receive_all, scaled

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ROW = b'{"instances": [[1, 2, 3, 4]]}'


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    with Server(linear(tmp_path_factory.mktemp("model")), log_requests=1) as server:
        yield server


def lines(server: Server, key: str, value: object) -> dict:
    """Wait for the line that has a value, and give it."""
    while True:
        line = json.loads(server.line(r"^\{.*\}$")[0])
        if line.get(key) == value:
            return line


def test_every_line_is_json_with_time_level_and_message(telling):
    telling.ask("GET", "/livez", headers={"x-request-id": "the-last"})
    lines(telling, "request_id", "the-last")
    for line in map(json.loads, telling.log):
        assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0
        assert line["level"] in {"info", "warning"}
        assert line["message"]


def test_a_request_is_told_with_its_ids(telling):
    headers = JSON | {"traceparent": CALLER, "x-request-id": "mine"}
    assert telling.ask("POST", "/predict?secret=1", ROW, headers)[0] == 200
    line = lines(telling, "request_id", "mine")
    span = line.pop("span_id")
    assert re.fullmatch(r"[0-9a-f]{16}", span)
    assert span != line["parent_id"]
    assert 0 < line.pop("seconds") < 60
    line.pop("time")
    assert line == {
        "level": "info", "message": "POST /predict 200", "request_id": "mine",
        "trace_id": CALLER[3:35], "parent_id": CALLER[36:52], "trace_flags": "01",
        "protocol": "native", "route": "/predict", "path": "/predict", "method": "POST", "status": 200,
    }  # fmt: skip


def test_what_no_route_and_no_parser_takes_is_told_too(telling):
    assert telling.ask("GET", "/%0a%22no%0d", headers={"x-request-id": "lost"})[0] == 404
    line = lines(telling, "request_id", "lost")
    assert (line["route"], line["path"], line["status"]) == ("unknown", '/\n"no\r', 404)
    with telling.connect() as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        receive_all(connection)
    assert lines(telling, "route", "unread")["status"] == 400


@pytest.mark.parametrize("given", [None, CALLER.upper(), CALLER + "-00", CALLER.replace("00-", "ff-", 1), "00-1-2-3"])
def test_a_trace_that_cannot_be_read_is_begun_anew(telling, given):
    headers = {"x-request-id": f"id-{given}"} | ({"traceparent": given} if given else {})
    telling.ask("GET", "/livez", headers=headers)
    line = lines(telling, "request_id", f"id-{given}")
    assert re.fullmatch(r"(?!0+$)[0-9a-f]{32}", line["trace_id"])
    assert line["trace_id"] != CALLER[3:35]
    assert "parent_id" not in line


def test_two_traces_are_none(telling):
    with telling.connect() as connection:
        head = f"GET /livez HTTP/1.0\r\ntraceparent: {CALLER}\r\nTraceparent: {CALLER}\r\nx-request-id: two\r\n\r\n"
        connection.sendall(head.encode())
        receive_all(connection)
    assert "parent_id" not in lines(telling, "request_id", "two")


parts = st.tuples(*(st.text("0123456789abcdef", min_size=n, max_size=n) for n in (2, 32, 16, 2)), st.sampled_from(["", "-", "-x", "x"]))  # fmt: skip


@given(parts)
def test_traces_are_continued_as_the_specification_says(parts):
    version, trace, parent, flags, rest = parts
    found = tracing.continued([f"{version}-{trace}-{parent}-{flags}{rest}"])
    good = version != "ff" and int(trace, 16) and int(parent, 16) and rest != "x" and (not rest or version != "00")
    assert len(found.span) == 16
    if good:
        assert (found.id, found.parent, found.flags) == (trace, parent, flags)
    else:
        assert (found.id != trace, found.parent, found.flags) == (True, "", "00")


@given(st.text(max_size=80))
def test_any_other_text_begins_a_trace(text):
    assert tracing.continued([text]).parent == ""


def test_requests_have_no_lines_unless_asked_for(tmp_path):
    with Server(scaled(tmp_path, 2)) as server:
        assert server.ask("GET", "/livez")[0] == 200
        assert server.stop() == 0
        told = [json.loads(line)["message"].partition(" ")[0] for line in server.log]
    assert told == ["serving", "loaded:", "ready:", "stopped"]


@given(st.text())
def test_no_text_begins_a_line_of_the_plain_log(text):
    """Neither a message nor what an exception says can look like a record, nor reach a terminal as a command."""
    caught = (ValueError, ValueError(text), None)
    record = logging.LogRecord("modelpack.server", logging.ERROR, "", 0, "failed: %s", (text,), caught)
    first, *more = logs.TextLines({}).format(record).splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d .* ERROR failed: ", first)
    assert more[0].startswith("  ValueError")
    assert all(line.startswith("  ") for line in more)
    assert not any("\x1b" in line for line in (first, *more))


@pytest.fixture
def fresh():
    """Loggers as they were, after a test that begins the log in this process."""
    yield
    for name in ("modelpack.server", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET


def test_levels_leave_out_what_matters_less(fresh, capsys):
    environment = {"MODELPACK_LOG_LEVEL": "warning", "MODELPACK_LOG_FORMAT": "text", "MODELPACK_LOG_REQUESTS": "1"}
    logs.begin(Settings.read(environment), worker=3)
    logs.answered("GET / 200", 200, {})
    logs.answered("GET / 503", 503, {"request_id": "a"})
    assert re.fullmatch(r"\S+ \S+ WARNING GET / 503 worker=3 request_id=a status=503\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["LOG_FORMAT", "LOG_LEVEL"])
def test_an_unknown_form_or_level_is_refused(name):
    with pytest.raises(StartError, match=f"MODELPACK_{name}='loud' is none of "):
        Settings.read({f"MODELPACK_{name}": "loud"})


def record(message, *, fields=None, fault=None):
    found = logging.LogRecord("modelpack.server", logging.ERROR, "", 0, message, (), fault)
    found.fields = fields or {}
    return found


def test_a_line_of_text_has_its_fields_and_its_trace():
    fault = (ValueError, ValueError("look for me"), None)
    text = logs.TextLines({"worker": 2}).format(
        record("it failed", fields={"path": "/a\nb", "status": 500}, fault=fault)
    )
    first, trace = text.split("\n")
    assert first.endswith(r'ERROR it failed worker=2 path="/a\nb" status=500')
    assert trace == "  ValueError: look for me"
    assert json.loads(logs.JsonLines({}).format(record("x", fault=fault)))["exception"] == trace.strip()


@given(st.text(), st.text())
def test_no_value_ends_a_line(message, value):
    line = logs.JsonLines({}).format(record(message.replace("%", ""), fields={"path": value}))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["path"] == value
    assert len(logs.TextLines({}).format(record("m", fields={"path": value})).splitlines()) == 1
