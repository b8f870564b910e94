"""A server's life: starting, being ready, being full, draining, ending; also copied elsewhere, with nothing around it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnxruntime
import pytest

import modelpack.server
from interfaces import made, photos, pictures, reading, seeing, sentences
from serving import ISOLATED, JSON, Server, answers, linear, patient, receive_all, stopped_busy, table, wait_for

SOURCE = Path(modelpack.server.__file__).parent


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model, and how many of its steps take one second in one thread."""
    folder = patient(tmp_path_factory.mktemp("slow"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def seconds(steps):
        began = time.perf_counter()
        session.run(None, {"steps": [steps]})
        return time.perf_counter() - began

    steps = 200
    while seconds(steps) < 0.2:
        steps *= 2
    # The best of three: a busy machine would make the steps too few, and so the second too short for what it waits for.
    return folder, int(steps / min(seconds(steps) for _ in range(3)))


class Asking(threading.Thread):
    """A request under way."""

    def __init__(self, server: Server, steps: int) -> None:
        super().__init__(daemon=True)
        self.server, self.steps, self.got = server, steps, None
        self.start()

    def run(self) -> None:
        body = json.dumps({"instances": [self.steps]})
        self.got = self.server.ask("POST", "/predict", body, JSON)

    def answer(self):
        self.join(60)
        assert self.got is not None
        return self.got


def healthcheck(port):
    command = [sys.executable, "-m", "modelpack.server", "--healthcheck", "--port", str(port)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_what_is_in_flight_is_answered_before_the_end(slow):
    folder, steps = slow
    with Server(folder, drain_delay=2, threads=1) as server:
        running = Asking(server, steps)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 503)
        status, headers, body = server.ask("GET", "/readyz")
        assert (status, headers["connection"], json.loads(body)) == (
            503,
            "close",
            {"ready": False, "reason": "draining"},
        )
        assert server.ask("GET", "/livez")[0] == 200
        assert server.metric("modelpack_ready") == 0
        late = Asking(server, 1)
        status, headers, _ = running.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert late.answer()[0] == 200, "new work is served during the delay"
        assert server.process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_no_request_is_lost_when_a_busy_server_stops(slow):
    with Server(slow[0], drain_delay=0.2) as server:
        outcomes = stopped_busy(server, 8, 50)
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {200}
    lost = [outcome for outcome in outcomes if not isinstance(outcome, int)]
    assert len(lost) <= 1, "a handshake may still cross the close, inside the kernel; more than that are ours"


def test_idle_connections_do_not_hold_up_the_end(slow):
    with Server(slow[0]) as server, server.connect() as idle, server.connect() as fresh:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while b"true}" not in answer:
            answer += idle.recv(4096)
        assert answers(answer)[0][0] == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15, "they may stay for 75 seconds, work in flight for 25"
        assert receive_all(idle) == receive_all(fresh) == b""


def test_the_wait_for_work_in_flight_is_bounded(slow):
    folder, steps = slow
    with Server(folder, drain_timeout=1, threads=1) as server:
        running = Asking(server, 100 * steps)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 40
        assert running.answer()[0] == 503


def test_a_client_that_never_sends_the_rest_does_not_hold_up_the_end(tmp_path):
    with Server(linear(tmp_path), drain_timeout=1) as server, server.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nContent-Type: application/json\r\n\r\n{"
        )
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        server.process.send_signal(signal.SIGTERM)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_signals_are_heard_as_soon_as_it_listens(tmp_path, workers):
    with Server(linear(tmp_path), wait=False, workers=workers) as server:
        server.process.send_signal(signal.SIGHUP)
        server.line(r"ready: ")
    assert Server(linear(tmp_path), wait=False, workers=workers).stop() == 0
    assert Server(linear(tmp_path), wait=False, workers=workers).stop(signal.SIGINT) == 130


def test_ctrl_c_ends_with_130(slow):
    assert Server(slow[0], drain_delay=30).stop(signal.SIGINT) == 130


def test_a_terminal_that_hangs_up_ends_the_server(tmp_path):
    leader, follower = os.openpty()
    try:
        command = [sys.executable, "-m", "modelpack.server", "--model", str(linear(tmp_path)), "--port", "0"]
        with subprocess.Popen(command, stdin=follower, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "ready: " not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGHUP)
            assert process.wait(30) == -signal.SIGHUP
    finally:
        os.close(leader)
        os.close(follower)


def test_a_full_queue_is_429_and_empties(slow):
    folder, steps = slow
    with Server(folder, queue=1, threads=1) as server:
        first = Asking(server, 3 * steps)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        second = Asking(server, 1)
        wait_for(lambda: server.metric("modelpack_queue_depth") == 1)
        status, headers, body = server.ask("POST", "/predict", '{"instances": [1]}', JSON)
        assert (status, headers["retry-after"]) == (429, "1")
        assert list(json.loads(body)) == ["error"]
        assert [first.answer()[0], second.answer()[0]] == [200, 200]
        assert server.predict({"instances": [1]})[0] == 200
        assert server.metric("modelpack_queue_depth") == 0
        assert server.metric('modelpack_requests_total{code="429",protocol="native",route="/predict"}') == 1


def test_requests_that_wait_share_the_next_run(slow, tmp_path):
    _, steps = slow
    with Server(patient(tmp_path, rowwise=True), threads=1) as server:
        first = Asking(server, 3 * steps)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        others = [Asking(server, number) for number in range(1, 9)]
        wait_for(lambda: server.metric("modelpack_queue_depth") == 8)
        answers_ = [json.loads(each.answer()[2])["predictions"] for each in (first, *others)]
        assert answers_ == [[3 * steps], *([number] for number in range(1, 9))]
        assert server.metric("modelpack_batch_size_count") == 2
        assert server.metric("modelpack_batch_size_sum") == 9


def test_a_deadline_is_504_and_stops_the_run(slow):
    folder, steps = slow
    with Server(folder, deadline=0.3, threads=1) as server:
        began = time.monotonic()
        both = Asking(server, 60 * steps), Asking(server, 60 * steps)
        assert [each.answer()[0] for each in both] == [504, 504]
        assert all("the deadline passed while" in json.loads(each.answer()[2])["error"] for each in both)
        wait_for(lambda: server.predict({"instances": [1]})[0] == 200)
        assert time.monotonic() - began < 40, "the runs were told to stop"


def test_a_client_that_left_is_not_computed_for(slow):
    folder, steps = slow
    with Server(folder, threads=1) as server:
        running = Asking(server, 3 * steps)
        wait_for(lambda: server.metric("modelpack_inflight_requests") == 2)
        body = json.dumps({"instances": [100 * steps]}).encode()
        with server.connect() as leaving:
            head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            leaving.sendall(head % len(body) + body)
            wait_for(lambda: server.metric("modelpack_queue_depth") == 1)
        assert running.answer()[0] == 200
        began = time.monotonic()
        assert server.predict({"instances": [1]})[0] == 200
        assert time.monotonic() - began < 40
        assert server.metric('modelpack_requests_total{code="499",protocol="native",route="/predict"}') == 1


def test_the_health_check_tells_a_ready_server_from_the_rest(slow):
    with Server(slow[0], drain_delay=20) as server:
        assert healthcheck(server.port).returncode == 0
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 503)
        draining = healthcheck(server.port)
        assert draining.returncode == 1
        assert "draining" in draining.stdout
        server.process.send_signal(signal.SIGTERM)
    assert healthcheck(server.port).returncode == 1


def test_a_server_answers_while_its_model_loads(slow, tmp_path):
    """A named pipe in place of the model holds its loading up for as long as the test likes."""
    folder = tmp_path / "model"
    shutil.copytree(slow[0], folder)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    with Server(folder, wait=False) as server:
        assert server.ask("GET", "/livez")[0] == 200
        assert server.ask("GET", "/startupz")[0] == 503
        status, headers, body = server.ask("GET", "/readyz")
        assert (status, headers["retry-after"], json.loads(body)["reason"]) == (503, "1", "loading")
        status, answer = server.predict({"instances": [1]})
        assert (status, answer["error"]) == (503, "the server is loading its model")
        assert server.ask("GET", "/openapi.json")[0] == 200
        (folder / "model.onnx").write_bytes(b"no model")
        assert server.process.wait(30) == 1
    assert "cannot be loaded" in "".join(server.log)
    assert "Traceback" not in "".join(server.log)


def start(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "modelpack.server", "--model", str(folder), "--host", "127.0.0.1", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def test_what_prevents_a_start_is_one_line(tmp_path):
    folder = linear(tmp_path / "model")
    free = ("--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (start(tmp_path / "none", *free), "signature cannot be read"),
            (start(folder, "--port", port), "cannot listen on 127.0.0.1:"),
            (start(folder, *free, MODELPACK_QUEUE="many"), "MODELPACK_QUEUE='many' is not a whole number"),
            (start(folder, "--port", "99999"), "99999"),
            (start(folder, *free, "--threads", "0"), "0 threads"),
        ]
        signature = json.loads((folder / "signature.json").read_text())
        for change, message in [
            ({"inputs": {"z": signature["inputs"]["x"]}}, "disagree on 'x', 'z'"),
            ({"inputs": {"x": {"shape": ["batch", 5], "dtype": "float32"}}}, r"[batch, 5] in the signature"),
            ({"inputs": {"x": {"shape": ["batch", 4], "dtype": "int64"}}}, "int64 in the signature but tensor(float)"),
            ({"inputs": {"x": {"shape": ["batch", None], "dtype": "float32"}}}, "neither a name nor a size"),
            ({"inputs": {}}, "it has no inputs"),
            ({"outputs": {"y": {"shape": [], "dtype": "complex64"}}}, "'complex64', which cannot be served"),
        ]:
            (folder / "signature.json").write_text(json.dumps(signature | change))
            cases.append((start(folder, *free), message))
        (folder / "signature.json").write_text(json.dumps(signature))
        (folder / "card.json").write_text("[1]")
        cases.append((start(folder, *free), "is not a JSON object"))
    for ended, message in cases:
        assert ended.returncode == 1, message
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_model_that_loads_but_does_not_run_is_never_ready(tmp_path):
    """Its declared range lies beyond its table, so that even the warm-up fails."""
    folder = table(tmp_path)
    signature = json.loads((folder / "signature.json").read_text())
    signature["inputs"]["id"]["range"] = [50, 60]
    (folder / "signature.json").write_text(json.dumps(signature))
    ended = start(folder, "--port", "0")
    assert ended.returncode == 1
    assert (
        "error: the model does not run: the model refuses these values: indices element out of data bounds"
        in ended.stderr
    )
    assert "ready:" not in ended.stderr


def test_a_start_that_fails_is_an_error_for_a_caller(tmp_path):
    with pytest.raises(modelpack.server.StartError, match="signature"):
        modelpack.server.serve(tmp_path, port=0)


def test_serving_from_python_takes_a_card(tmp_path):
    code = (
        "import sys, pathlib, modelpack.server\n"
        "sys.exit(modelpack.server.serve(pathlib.Path(sys.argv[2]), port=0, threads=1, card={'name': 'mine', 'version': 3}))"
    )
    with Server(linear(tmp_path), command=[sys.executable, "-c", code]) as server:
        status, answer = server.predict({"instances": [[1, 2, 3, 4]]})
        assert (status, answer["model_name"], answer["model_version"]) == (200, "mine", "3")
        assert server.stop() == 0


@pytest.fixture
def relocated(tmp_path):
    """The server copied to a directory of its own, run where torch and modelpack cannot be imported."""
    home = tmp_path / "app"
    shutil.copytree(SOURCE, home / "modelpack_server", ignore=shutil.ignore_patterns("__pycache__"))
    return [sys.executable, "-I", "-B", "-W", "error", "-c", ISOLATED, str(home)]


def test_the_relocated_server_needs_nothing_of_modelpack(relocated, tmp_path):
    folder = linear(tmp_path / "model")
    with Server(folder, command=relocated) as server:
        status, answer = server.predict({"instances": [[1, 2, 3, 4]]})
        assert status == 200
        assert server.stop() == 0
    with Server(folder) as local:
        assert local.predict({"instances": [[1, 2, 3, 4]]}) == (status, answer)


SHOUTING = """
from ..exchange import Response, failure
from ..router import Protocol, Route
from ..rows import dump, from_rows, parse, to_rows

def protocol(_settings):
    return Protocol("shouting", (Route("POST", "/shout/{model}!", shout),), fail=loudly)

async def shout(service, request):
    "Run a model, loudly."
    with service.catalog.find(request.parts["model"]) as model:
        feed = from_rows(parse(await request.body())["ROWS"], model.signature)
        answer = await service.infer(model, feed, request.arrived, request.gone)
        return Response(200, dump({"ANSWERS": to_rows(answer.outputs, answer.rows)}))

def loudly(fault):
    return failure(fault, {"WRONG": fault.message.upper()})
"""


def test_a_new_file_is_a_new_protocol(relocated, tmp_path):
    (tmp_path / "app" / "modelpack_server" / "protocols" / "shouting.py").write_text(SHOUTING)
    with Server(linear(tmp_path / "model"), command=relocated) as server:
        plain = server.predict({"instances": [[1, 2, 3, 4]]})[1]["predictions"]
        asked = [server.ask("POST", "/shout/model!", json.dumps({"ROWS": rows})) for rows in ([[1, 2, 3, 4]], [[1]])]
        assert [(status, json.loads(body)) for status, _, body in asked] == [
            (200, {"ANSWERS": plain}),
            (400, {"WRONG": "INPUT 'X': EXPECTED SHAPE [BATCH, 4], GOT [1, 1]"}),
        ]
        assert server.ask("GET", "/shout/model!")[0] == 405
        document = json.loads(server.ask("GET", "/openapi.json")[2])
        assert document["paths"]["/shout/model!"]["post"]["summary"] == "Run a model, loudly"
        assert server.metric('modelpack_requests_total{code="400",protocol="shouting",route="/shout/{model}!"}') == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_relocated_server_writes_nothing_and_calls_nobody(relocated, tmp_path, workers):
    """Every audit event for a file opened to be written, or a socket that connects, is an event too many."""
    spy = (
        "import sys\n"
        "def spy(event, args):\n"
        "    flags = args[2] if event == 'open' and isinstance(args[2], int) else 0\n"
        "    if event == 'socket.connect' or flags & 3 or event in ('os.mkdir', 'subprocess.Popen'):\n"
        "        sys.stderr.write(f'CAUGHT {event} {args}\\n')\n"
        f"    if event == 'os.fork' and {workers} == 1:\n"
        "        sys.stderr.write(f'CAUGHT {event} {args}\\n')\n"
        "sys.addaudithook(spy)\n"
    )
    command = [spy + part if part == ISOLATED else part for part in relocated]
    linear(tmp_path / "models" / "model")
    picture, *_ = photos(tmp_path)
    for name, make, data in (("colours", seeing, pictures), ("texts", reading, sentences)):
        model = make(tmp_path / name)
        artifact = made(tmp_path / name, model, {"data": "v"}, v=data(tmp_path, model))
        shutil.copytree(artifact.path, tmp_path / "models" / name)
    before = sorted(path for path in tmp_path.rglob("*"))
    with Server(tmp_path / "models", command=command, workers=workers) as server:
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 200)
        for name, body, media in (
            ("model", b'{"instances": [[1, 2, 3, 4]]}', "application/json"),
            ("colours", picture.read_bytes(), "image/png"),
            ("texts", b"good film", "text/plain"),
        ):
            assert server.ask("POST", f"/predict/{name}", body, {"content-type": media})[0] == 200
        assert server.ask("GET", "/metrics")[0] == 200
        assert server.stop() == 0
    assert "CAUGHT" not in "".join(server.log)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_telemetry_is_off_before_the_runtime_is_imported(tmp_path):
    code = (
        "import os, sys\n"
        "class See:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, See())\n"
        "import modelpack.server.engine\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "1"


def test_the_package_and_the_health_check_import_nothing_heavy():
    code = "import sys, modelpack.server.__main__; print(*sorted(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnxruntime", "uvloop", "orjson", "asyncio"} & set(done.stdout.split())


def test_the_requirements_are_the_extras():
    """What runs locally is what runs inside the image."""
    pins = {line.strip() for line in (SOURCE / "requirements.txt").read_text().splitlines() if "==" in line}
    assert len(pins) == 35
    project = Path(__file__).parents[1] / "pyproject.toml"
    import tomllib

    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert {*extras["serve"], *extras["grpc"], *extras["otel"]} - {"modelpack[serve]"} <= pins
