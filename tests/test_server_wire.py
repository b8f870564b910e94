"""The socket itself: pipelines, chunks, old HTTP, slow and hostile clients."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import sys
import time

import pytest
import uvloop
from onnx import helper

from modelpack.server import heads
from modelpack.server.app import App
from modelpack.server.exchange import Response
from modelpack.server.service import Service
from modelpack.server.settings import Settings
from modelpack.server.wire import Connection, Open
from serving import Server, answers, linear, patient, receive_all, wait_for, write_model

BODY = b'{"instances": [[1,2,3,4]]}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
LIMITS = {
    "head_timeout": 0.4,
    "body_timeout": 0.4,
    "max_body": 5000,
    "max_head": 2000,
    "max_rows": 50,
    "idle_timeout": 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(linear(tmp_path_factory.mktemp("model")), **LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    with Server(patient(tmp_path_factory.mktemp("slow"))) as running:
        yield running


def talk(server, *parts, pause=0.0):
    with server.connect() as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        return answers(receive_all(connection))


def feed(connection, head, part, times, pause=0.0):
    connection.sendall(head)
    for _ in range(times):
        connection.sendall(part)
        time.sleep(pause)


def test_pipelined_requests_are_answered_in_order(server):
    other = BODY.replace(b"1", b"9")
    first = POST + LENGTH + b"\r\n" + BODY
    second = POST + LENGTH + b"\r\n" + other
    got = talk(server, first + second + GET + b"\r\n" + GET + CLOSE + b"\r\n")
    assert [status for status, _, _ in got] == [200] * 4
    rows = [json.loads(body).get("predictions") for _, _, body in got]
    alone = [server.predict(body)[1]["predictions"] for body in (BODY, other)]
    assert rows[:2] == alone
    assert alone[0] != alone[1]


def test_a_chunked_body_in_pieces(server):
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (1, BODY[at : at + 1]) for at in range(len(BODY)))
    head = POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"\r\n"
    got = talk(server, head, chunks[:50], chunks[50:], b"0\r\nTrailer: x\r\n\r\n", pause=0.02)
    assert [status for status, _, _ in got] == [200]


def test_a_request_byte_by_byte(server):
    data = POST + LENGTH + CLOSE + b"\r\n" + BODY
    got = talk(server, *(data[at : at + 1] for at in range(len(data))))
    assert [status for status, _, _ in got] == [200]


def test_expect_100_continue_is_invited_or_refused_at_once(server):
    with server.connect() as connection:
        connection.sendall(POST + LENGTH + CLOSE + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(BODY)
        assert answers(receive_all(connection))[0][0] == 200
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 99999\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413", "a body that is waited for ends with 408"


def test_http_1_0_and_its_expectations_are_ignored(server):
    head = b"POST /predict HTTP/1.0\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n" + LENGTH
    got = talk(server, head + b"\r\n", BODY, pause=0.1)
    assert [(status, headers["connection"]) for status, headers, _ in got] == [(200, "close")]


def test_a_target_may_name_the_host(server):
    for target in (b"http://a/livez", b"http://a", b"http://a?q"):
        assert [each[0] for each in talk(server, b"GET %s HTTP/1.1\r\nHost: a\r\n" % target + CLOSE + b"\r\n")] == [200]
    assert talk(server, b"GET * HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n")[0][0] == 404
    assert talk(server, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n")[0][0] == 204


@pytest.mark.parametrize(
    "head",
    [
        LENGTH + LENGTH,
        LENGTH + b"Content-Length: 5\r\n",
        b"Content-Length: 26, 26\r\n",
        b"Content-Length: +26\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        LENGTH + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n" + LENGTH,
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Host: b\r\n" + LENGTH,
        b"Bad Header\r\n" + LENGTH,
        b"X: \x00\r\n" + LENGTH,
        b"Upgrade: h2c\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_ambiguous_framing_is_400_and_closes(server, head):
    got = talk(server, POST + head + b"\r\n" + BODY + GET + b"\r\n")
    assert [status for status, _, _ in got] == [400]
    assert list(json.loads(got[0][2])) == ["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/3.0\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400(server, data):
    assert [status for status, _, _ in talk(server, data)] == [400]


def test_nonsense_after_a_request_is_answered_after_it(slow):
    head = POST + b"Content-Length: 22\r\n\r\n" + b'{"instances": [ 300 ]}'
    got = talk(slow, head + b"nonsense\r\n\r\n")
    assert [status for status, _, _ in got] == [200, 400]
    broken = POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"zz\r\n"
    assert [status for status, _, _ in talk(slow, head + head + broken)] == [200, 200, 400]


def test_what_comes_behind_an_early_answer_is_dropped_whatever_it_is(server):
    nowhere = b"POST /nowhere HTTP/1.1\r\nHost: a\r\n" + LENGTH + b"\r\n"
    broken = POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    for behind in (GET + b"\r\n", POST + LENGTH + b"\r\n" + BODY, broken, b"nonsense\r\n"):
        assert [status for status, _, _ in talk(server, nowhere, BODY + behind, pause=0.1)] == [404]
    assert server.predict(BODY)[0] == 200
    assert "rror" not in "".join(server.log)


def test_an_offered_upgrade_is_ignored_and_its_body_is_read(server):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    data = POST + offer + LENGTH + b"\r\n" + BODY
    last = GET + CLOSE + b"\r\n"
    assert [status for status, _, _ in talk(server, data + last)] == [200, 200]
    assert [status for status, _, _ in talk(server, data[:-9], data[-9:] + last, pause=0.1)] == [200, 200]
    assert [status for status, _, _ in talk(server, GET + offer + b"\r\n" + last)] == [200, 200]


@pytest.mark.parametrize(
    "data",
    [
        GET + b"X: " + b"a" * 3000 + b"\r\n\r\n",
        GET + b"A: b\r\n" * 1000,
        b"GET /" + b"a" * 3000,
    ],
)
def test_a_head_beyond_the_limit_is_431(server, data):
    assert talk(server, data)[-1][0] == 431


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_beyond_the_limit_is_413_and_readable(server, framing):
    if framing == "length":
        data = POST + b"Content-Length: 3000000\r\n\r\n" + b"a" * 3_000_000
    else:
        data = (
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"a" * 0x8000 + b"\r\n") * 20 + b"0\r\n\r\n"
        )
    got = talk(server, data)
    assert [(status, headers["connection"]) for status, headers, _ in got] == [(413, "close")]
    assert b"5000" in got[0][2]


def test_an_endless_chunk_extension_or_trailer_ends(server):
    start = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    for head in (start + b"1;", start + b"0\r\nTrailer: "):
        with server.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):
            feed(connection, head, b"a" * 2**20, times=200)


@pytest.mark.parametrize(
    ("status", "head"), [(431, GET + b"X: "), (400, POST + LENGTH + LENGTH + b"\r\n"), (400, b"nonsense\r\n")]
)
def test_who_still_sends_what_cannot_be_read_sees_why(server, status, head):
    with server.connect() as connection:
        feed(connection, head, b"a" * 65536, times=100)
        assert [each[0] for each in answers(receive_all(connection))] == [status]


def test_a_body_that_has_arrived_unread_leaves_the_connection_open(server):
    nowhere = b"POST /nowhere HTTP/1.1\r\nHost: a\r\n" + LENGTH + b"\r\n" + BODY
    got = talk(server, nowhere + GET + CLOSE + b"\r\n")
    assert [(status, headers.get("connection")) for status, headers, _ in got] == [(404, None), (200, "close")]


def test_who_asks_and_asks_and_takes_no_answer_holds_little(tmp_path):
    with Server(linear(tmp_path), body_timeout=1) as server:
        before = server.metric("process_resident_memory_bytes")
        with server.connect() as connection:
            connection.settimeout(0.5)
            with pytest.raises(OSError, match=r"timed out|reset|pipe"):
                feed(connection, b"", (b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n") * 500, times=200)
            asked = server.metric('modelpack_requests_total{code="200",protocol="native",route="/openapi.json"}')
            held = server.metric("process_resident_memory_bytes") - before
        assert asked < 2000, "no answer is made that nobody takes"
        assert held < 64e6


def test_who_asks_much_at_once_is_answered_and_holds_little(slow):
    first = POST + b"Content-Length: 23\r\n\r\n" + b'{"instances": [ 2000 ]}'
    before = slow.metric("process_resident_memory_bytes")
    many = b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n" * 6000
    connections = [slow.connect() for _ in range(4)]
    for connection in connections:
        connection.sendall(first + many + GET + CLOSE + b"\r\n")
    time.sleep(0.1)
    held = slow.metric("process_resident_memory_bytes") - before
    for connection in connections:
        with connection:
            assert [status for status, _, _ in answers(receive_all(connection))] == [200] * 6002
    assert held < 6e6, "requests are read when it is their turn"


def test_a_body_in_tiny_chunks_takes_the_memory_of_its_bytes(slow):
    body = b'{"instances": [ 1 ]}' + b"  " * 400_000
    before = slow.metric("process_resident_memory_bytes")
    with slow.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"\r\n")
        connection.sendall(b"".join(b"2\r\n%s\r\n" % body[at : at + 2] for at in range(0, len(body), 2)))
        wait_for(lambda: slow.metric("modelpack_inflight_requests") == 2)
        held = slow.metric("process_resident_memory_bytes") - before
        connection.sendall(b"0\r\n\r\n")
        assert [status for status, _, _ in answers(receive_all(connection))] == [200]
    assert held < 10e6


@pytest.mark.parametrize(
    "data",
    [
        GET + b"\r\n",
        POST + LENGTH + b"\r\n" + BODY,
        POST + LENGTH + b"\r\n" + BODY.replace(b"1", b"x"),
        POST + LENGTH + b"\r\n" + BODY[:5],
        POST + b"Content-Length: 99999999\r\n\r\n" + BODY,
        POST + LENGTH + LENGTH + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"nonsense\r\n",
    ],
)
def test_nothing_of_a_connection_waits_for_the_garbage_collector(tmp_path, data):
    async def left() -> int:
        service, opened = Service(Settings.read({}, model=str(linear(tmp_path)))), Open()
        app = App(service)
        await service.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(app, service, opened), "127.0.0.1", 0)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(data)
                await asyncio.sleep(0.05)
                writer.close()
                while opened.connections or opened.tasks:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.02)
            return sum(type(each) is Connection for each in gc.get_objects())  # others may not like to be asked
        finally:
            gc.enable()
            server.close()
            service.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(left()) <= 1, "the event loop may hold the last"


def test_headers_hold_no_control_characters():
    split = Response(200, b"", headers={"x-a": "b\r\nx-c: d"})
    with pytest.raises(ValueError, match="x-a"):
        heads.answer(split, "id", close=False)


def test_a_slow_head_is_408(server):
    with server.connect() as connection:
        connection.sendall(GET)
        began = time.monotonic()
        assert answers(receive_all(connection))[0][0] == 408
        assert time.monotonic() - began > 0.3


def test_a_slow_head_behind_a_request_is_408(server):
    assert [status for status, _, _ in talk(server, GET + b"\r\n" + GET)] == [200, 408]


def test_a_head_that_waits_for_other_answers_has_its_time_after_them(tmp_path):
    with Server(patient(tmp_path), head_timeout=0.3) as server, server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 24\r\n\r\n" + b'{"instances": [ 10000 ]}' + GET + b"\r\n" + GET)
        got = connection.recv(4096)
        connection.sendall(CLOSE + b"\r\n")
        assert [status for status, _, _ in answers(got + receive_all(connection))] == [200, 200, 200]


def test_the_last_answer_reaches_who_has_asked_for_more(tmp_path):
    with Server(patient(tmp_path)) as server, server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 24\r\n\r\n" + b'{"instances": [ 10000 ]}' + (GET + b"\r\n") * 20000)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        server.process.send_signal(signal.SIGTERM)
        got = answers(receive_all(connection))
        assert [(status, headers.get("connection")) for status, headers, _ in got] == [(200, "close")]


def test_a_trickling_head_is_408(server):
    with server.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):
        feed(connection, GET, b"A: b\r\n", times=100, pause=0.05)


def test_a_connection_that_says_nothing_is_closed(server):
    with server.connect() as connection:
        assert receive_all(connection) == b""


def test_an_idle_connection_is_closed_and_empty_lines_do_not_keep_it(server):
    with server.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert answers(connection.recv(4096))[0][0] == 200
        connection.sendall(b"\r\n")
        assert answers(receive_all(connection))[0][0] == 408


def test_a_slow_body_is_408(server):
    with server.connect() as connection:
        connection.sendall(POST + LENGTH + b"\r\n" + BODY[:5])
        got = answers(connection.recv(4096))
        assert got[0][0] == 408
        assert got[0][1]["connection"] == "close"


def test_a_client_that_leaves_harms_nobody(server):
    for part in (GET[:10], GET, POST + LENGTH + b"\r\n" + BODY[:5], POST + LENGTH + b"\r\n" + BODY):
        with server.connect() as connection:
            connection.sendall(part)
    assert server.predict(BODY)[0] == 200
    assert "ERROR" not in "".join(server.log)


def test_rows_have_a_limit(server):
    status, answer = server.predict({"instances": [[1, 2, 3, 4]] * 51})
    assert status == 400
    assert "51 rows" in answer["error"]


def test_what_could_not_be_read_is_counted(server):
    name = 'modelpack_requests_total{code="400",protocol="native",route="unread"}'
    before = server.metric(name)
    talk(server, b"nonsense\r\n\r\n")
    assert server.metric(name) == before + 1


def test_one_connection_too_many_is_503(tmp_path):
    with Server(linear(tmp_path), max_connections=2) as server:
        held = [server.connect() for _ in range(2)]
        for connection in held:  # whoever has an answer is counted
            connection.sendall(GET + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        with server.connect() as third:
            got = answers(receive_all(third))
        assert [status for status, _, _ in got] == [503]
        for connection in held:
            connection.close()
        wait_for(lambda: server.ask("GET", "/livez")[0] == 200)


@pytest.mark.parametrize("hard", [1000, 200])
def test_as_many_files_may_be_open_as_connections_need(tmp_path, hard):
    limited = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}));"
        "os.execv(sys.executable, [sys.executable, '-m', 'modelpack.server', *sys.argv[1:]])"
    )
    with Server(linear(tmp_path), command=[sys.executable, "-c", limited], max_connections=120) as server:
        held = [server.connect() for _ in range(120)]
        for connection in held:
            connection.sendall(GET + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
    assert ("200 files open" in "".join(server.log)) == (hard == 200)


def test_who_takes_nothing_of_an_answer_is_cut_off_and_who_takes_it_slowly_is_not(tmp_path):
    size = 16 * 2**20  # more than a socket holds
    echo = write_model(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (["batch", "n"], "uint8")},
        {"y": (["batch", "n"], "uint8")},
    )
    head = (
        f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\nX-Shape: 1,{size}\r\n"
        f"Accept: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
    ).encode()
    with Server(echo, body_timeout=2, max_body=size) as server:
        with socket.socket() as silent, socket.socket() as slow:
            for connection in (silent, slow):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(head + bytes(size))
            got = 0
            for part in range(1, 6):
                while got < part * size / 5:
                    taken = len(slow.recv(2**20))
                    assert taken, "whoever takes some, now and then, gets all"
                    got += taken
                time.sleep(0.6)
            wait_for(lambda: server.metric("modelpack_inflight_requests") == 1)
            assert len(receive_all(silent)) < size, "what the kernel held, and then the end"
        assert server.metric('modelpack_requests_total{code="200",protocol="native",route="/predict"}') == 2
