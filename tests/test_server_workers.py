"""Several workers behind one port: they count together, are told together, and are replaced when they die."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelpack.server
from modelpack.server.board import NOW, Board, Sheet
from modelpack.server.faults import StartError
from modelpack.server.metrics import Metrics
from modelpack.server.settings import Settings
from serving import JSON, Server, hammer, linear, patient, scaled, wait_for

ROW = '{"instances": [[1, 2, 3, 4]]}'
ANSWERED = 'modelpack_requests_total{code="200",protocol="native",route="/predict"}'


@contextmanager
def several(folder: Path, **limits: object):
    """A server with two workers or more, when all of it is ready."""
    with Server(folder, wait=False, **{"workers": 2, **limits}) as server:
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 200)
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with several(linear(tmp_path_factory.mktemp("model")), log_requests=1) as server:
        yield server


@contextmanager
def connections(server: Server, count: int):
    with ExitStack() as stack:
        opened = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(count)]
        for each in opened:
            stack.callback(each.close)
            each.connect()
        yield opened


def ask(connection, method, path, body=None):
    connection.request(method, path, body, JSON)
    return connection.getresponse().read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def children(server: Server) -> list[int]:
    process = server.process.pid
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


names = st.text(max_size=20)


@given(
    st.lists(
        st.tuples(names, st.lists(st.floats(allow_nan=False), min_size=1, max_size=9)), unique_by=lambda each: each[0]
    )
)
def test_a_sheet_is_read_as_it_was_written(rows):
    memory = memoryview(bytearray(8192))
    written = Sheet(memory)
    for name, values in rows:
        row = written.row(name, len(values))
        for at, value in enumerate(values):
            row[at] = value
    again = Sheet(memory)
    assert [(name, list(row)) for name, row in again.rows()] == rows
    for name, values in rows:
        again.row(name, len(values))[0] = 7.0
        assert written.row(name, len(values))[0] == 7.0


def test_a_full_sheet_says_so_and_keeps_what_it_has():
    sheet = Sheet(memoryview(bytearray(64)))
    sheet.row("a")[0] = 5.0
    with pytest.raises(MemoryError, match="full"):
        sheet.row("b", 6)
    assert [(name, list(row)) for name, row in sheet.rows()] == [("a", [5.0])]


def test_of_a_worker_that_left_what_it_counted_stays():
    board = Board(2)
    workers = [Metrics(board, number) for number in range(2)]
    for number, metrics in enumerate(workers):
        metrics.count("native", "/predict", 200)
        metrics.inflight.inc()
        metrics.batch.observe(3 + number)
    board.leave(1)
    text = Metrics(board, 1).page("")[0].decode()
    assert f"{ANSWERED} 2.0" in text
    assert "modelpack_inflight_requests 1.0" in text
    assert 'modelpack_batch_size_bucket{le="4.0"} 2.0' in text
    assert "modelpack_batch_size_sum 7.0" in text


def test_all_workers_must_have_been_ready_once():
    board = Board(3)
    rows = [board.sheet(number).row(NOW + "x") for number in range(3)]
    rows[0][0] = rows[1][0] = 1.0
    assert not board.started(NOW + "x")
    rows[2][0] = 1.0
    assert board.started(NOW + "x")
    rows[0][0] = 0.0
    assert board.started(NOW + "x")


def test_connections_are_shared_and_every_worker_tells_the_sum(server):
    before = server.metric(ANSWERED)
    with connections(server, 8) as opened:
        for each in opened:
            assert b"predictions" in ask(each, "POST", "/predict", ROW)
        wait_for(lambda: server.metric(ANSWERED) == before + 8)
        pages = [ask(each, "GET", "/metrics").decode() for each in opened]
    for page in pages:
        assert f"{ANSWERED} {before + 8}\n" in page
        assert "modelpack_workers 2.0\n" in page
        assert "modelpack_ready 1.0\n" in page
    resident = [float(re.search(r"^process_resident_memory_bytes (\S+)$", page, re.MULTILINE)[1]) for page in pages]
    assert min(resident) > 60 * 2**20, "three processes together"
    told = []
    while len(told) < 8:
        line = json.loads(server.line(r"^\{.*\}$")[0])
        told += [line["worker"]] if line["message"] == "POST /predict 200" else []
    assert 2 <= told.count(0) <= 6, "each takes its part, though a busy machine may delay one"


def test_a_worker_that_dies_is_replaced_and_its_counts_stay(server):
    wait_for(lambda: server.metric("modelpack_workers") == 2)
    before, deaths = server.metric(ANSWERED), server.metric("modelpack_worker_deaths_total")
    server.ask("POST", "/predict", ROW, JSON)
    counted = wait_for(lambda: server.metric(ANSWERED) == before + 1) and before + 1
    workers = children(server)
    os.kill(workers[0], signal.SIGKILL)
    server.line("died: killed by SIGKILL")
    for _ in range(20):
        assert server.ask("GET", "/readyz")[0] == 200, "the other worker serves meanwhile"
    wait_for(lambda: server.metric("modelpack_workers") == 2)
    assert server.metric("modelpack_worker_deaths_total") == deaths + 1
    assert server.metric(ANSWERED) == counted
    assert len(set(children(server)) & set(workers)) == 1
    with connections(server, 4) as opened:
        for each in opened:
            assert b"predictions" in ask(each, "POST", "/predict", ROW)
    wait_for(lambda: server.metric(ANSWERED) == counted + 4)


def test_a_terminal_tells_the_first_process_alone(server):
    groups = {os.getpgid(process) for process in children(server)}
    assert len(groups) == 2
    assert os.getpgid(server.process.pid) not in groups


def test_a_hangup_reaches_every_worker(tmp_path):
    scaled(tmp_path / "m" / "1", 1)
    with several(tmp_path) as server:
        scaled(tmp_path / ".2", 2)
        (tmp_path / ".2").rename(tmp_path / "m" / "2")
        server.process.send_signal(signal.SIGHUP)
        workers = {json.loads(server.line(r'^\{.*"serving: m 2.*\}$')[0])["worker"] for _ in range(2)}
        assert workers == {0, 1}
        with connections(server, 4) as opened:
            versions = {
                json.loads(ask(each, "POST", "/predict", '{"instances": [[1]]}'))["model_version"] for each in opened
            }
        assert versions == {"2"}


def test_no_request_is_lost_when_all_workers_drain(tmp_path):
    with several(patient(tmp_path), drain_delay=1) as server:
        outcomes: list[object] = []
        clients = [
            threading.Thread(target=hammer, args=(server, outcomes, '{"instances": [20]}'), daemon=True)
            for _ in range(8)
        ]
        for client in clients:
            client.start()
        wait_for(lambda: len(outcomes) > 50)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 503)
        assert server.process.wait(60) == 0, "a second signal would end it at once"
        for client in clients:
            client.join(10)
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {200}
    lost = [outcome for outcome in outcomes if not isinstance(outcome, int)]
    assert len(lost) <= 1, "a handshake may cross the close of the socket, inside the kernel"
    assert "Traceback" not in "".join(server.log)


def test_workers_that_die_again_and_again_end_the_server(tmp_path):
    with several(linear(tmp_path)) as server:
        for _ in range(5):
            os.kill(wait_for(lambda: children(server))[0], signal.SIGKILL)
            server.line("died: killed by SIGKILL")
        assert server.process.wait(30) == 1
        server.line("error: 5 workers died within 60 seconds, the last one so: killed by SIGKILL")
        assert not Path(f"/proc/{server.process.pid}/task").exists()


def test_a_model_that_cannot_be_served_is_told_once(tmp_path):
    (linear(tmp_path) / "model.onnx").write_bytes(b"no model")
    command = [sys.executable, "-m", "modelpack.server", "--model", str(tmp_path), "--host", "127.0.0.1", "--port", "0"]
    environment = os.environ | {"MODELPACK_WORKERS": "2"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.count("error: ") == ended.stderr.count("cannot be loaded") == 1
    assert "Traceback" not in ended.stderr


def test_a_worker_that_cannot_be_replaced_yet_is_replaced_later(tmp_path):
    """While the other one serves what it has loaded."""
    with several(linear(tmp_path / "m")) as server:
        model = tmp_path / "m" / "model.onnx"
        model.rename(tmp_path / "kept")
        model.write_bytes(b"no model")
        os.kill(children(server)[0], signal.SIGKILL)
        server.line("worker . cannot start, and tries again: .*no longer those that are served")
        assert server.ask("POST", "/predict", ROW, JSON)[0] == server.ask("GET", "/readyz")[0] == 200
        (tmp_path / "kept").rename(model)
        wait_for(lambda: server.metric("modelpack_workers") == 2)
        assert server.metric("modelpack_worker_deaths_total") == 1
        assert server.stop() == 0


def test_two_that_cannot_be_replaced_at_once_do_not_hold_up_the_one_that_starts_them(tmp_path):
    """It finds both reasons in its pipe, when it hears of the first end."""
    with several(linear(tmp_path / "m"), workers=3) as server:
        model = tmp_path / "m" / "model.onnx"
        model.rename(tmp_path / "kept")
        model.write_bytes(b"no model")
        before = children(server)
        for process in before[:2]:
            os.kill(process, signal.SIGKILL)
        for _ in range(2):
            server.line("died: killed by SIGKILL")
        late = wait_for(lambda: len(new := set(children(server)) - set(before)) == 2 and new)
        server.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: all(" Z " in Path(f"/proc/{process}/stat").read_text() for process in late))
        server.process.send_signal(signal.SIGCONT)
        for _ in range(2):
            server.line("worker . cannot start, and tries again: .*no longer those that are served")
        (tmp_path / "kept").rename(model)
        wait_for(lambda: server.metric("modelpack_workers") == 3)
        assert server.stop() == 0


def test_workers_whose_starter_is_killed_end_too(tmp_path):
    with several(linear(tmp_path)) as server:
        workers = children(server)
        server.process.kill()
        wait_for(lambda: not any(Path(f"/proc/{process}/exe").exists() for process in workers))
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_every_worker_speaks_grpc_at_one_port(tmp_path):
    grpc = pytest.importorskip("grpc")
    port = free_port()
    with several(linear(tmp_path), grpc_port=port, log_requests=1) as server:
        told: set[int] = set()
        for number in range(64):
            with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
                metadata = [("x-request-id", f"call-{number}")]
                assert ready(b"", timeout=30, metadata=metadata) == b"\x08\x01"
            told.add(json.loads(server.line(rf'^\{{.*"call-{number}".*\}}$')[0])["worker"])
            if len(told) == 2:
                break
        assert told == {0, 1}
        route = "inference.GRPCInferenceService.ServerReady"
        wait_for(
            lambda: (
                server.metric(f'modelpack_requests_total{{code="200",protocol="grpc",route="{route}"}}') == number + 1
            )
        )
        assert server.stop() == 0


def test_no_call_is_lost_when_all_workers_drain_and_clients_have_another_server(tmp_path):
    """Each client has a connection to one worker of either server, and watches the health of both."""
    grpc = pytest.importorskip("grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    patient(tmp_path / "m")
    ports = [free_port(), free_port()]
    choice = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    options = [("grpc.service_config", json.dumps(choice)), ("grpc.use_local_subchannel_pool", 1)]
    request = service_pb2.ModelInferRequest(model_name="model")
    request.inputs.add(name="steps", datatype="INT64", shape=[1]).contents.int64_contents.append(20)
    counted = 'modelpack_requests_total{code="200",protocol="grpc",route="inference.GRPCInferenceService.ModelInfer"}'
    lost, done = [], threading.Event()

    def client():
        with grpc.insecure_channel(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not done.is_set():
                try:
                    stub.ModelInfer(request, timeout=60)
                except grpc.RpcError as error:
                    lost.append(error)

    def answered(server):
        before = server.metric(counted)
        return lambda: server.metric(counted) > before + 20

    with (
        several(tmp_path / "m", grpc_port=ports[0], drain_delay=2) as leaving,
        several(tmp_path / "m", grpc_port=ports[1]) as staying,
    ):
        clients = [threading.Thread(target=client, daemon=True) for _ in range(6)]
        for each in clients:
            each.start()
        for server in (leaving, staying):
            wait_for(answered(server))
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(60) == 0
        wait_for(answered(staying))
        done.set()
        for each in clients:
            each.join(60)
        assert lost == []
        assert staying.stop() == 0
    assert "Traceback" not in "".join(leaving.log + staying.log)


def test_ctrl_c_ends_all_with_130(tmp_path):
    with several(linear(tmp_path), drain_delay=30) as server:
        assert server.stop(signal.SIGINT) == 130


def test_a_port_of_its_own_for_each_worker_is_refused():
    with pytest.raises(StartError, match="a port of its own"):
        Settings.read({"MODELPACK_WORKERS": "2", "MODELPACK_GRPC_PORT": "0"})


def test_a_program_that_serves_has_no_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELPACK_WORKERS", "2")
    with pytest.raises(StartError, match="this server is one process"):
        modelpack.server.serve(linear(tmp_path), port=0)


def test_nothing_heavy_is_loaded_before_the_workers_are_there():
    """Threads of a library would not survive the fork."""
    code = "import sys, modelpack.server.start, modelpack.server.workers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnxruntime", "uvloop", "asyncio", "prometheus_client", "grpc"} & set(done.stdout.split())
