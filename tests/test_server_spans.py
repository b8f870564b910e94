"""Spans, sent to a small collector that reads OTLP: their ids, names and attributes, and that nothing waits for them."""

from __future__ import annotations

import gzip
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tritonclient.grpc as triton
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from modelpack.server import spans
from serving import JSON, Server, linear, patient, scaled, table

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=opaque"}
ROW = b'{"instances": [[1, 2, 3, 4]]}'


class Collector(ThreadingHTTPServer):
    """Takes spans; or only connections, when it is `silent`."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.status, self.got, self.headers = status, queue.Queue(), []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def span(self, name: str) -> tuple[Span, dict, dict]:
        """Wait for a span of a name; give it with its attributes and those of who sent it."""
        while True:
            resource, found = self.got.get(timeout=30)
            if found.name == name:
                return found, values(found.attributes), resource

    def named(self) -> list[str]:
        """Give the names of all that is there."""
        names = []
        while not self.got.empty():
            names.append(self.got.get()[1].name)
        return names


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.headers.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status == 200:
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in part.scope_spans:
                    for span in scope.spans:
                        self.server.got.put((values(part.resource.attributes), span))

    def log_message(self, *_: object) -> None:
        pass


def values(attributes) -> dict:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@contextmanager
def telling(monkeypatch, folder, address, *, wait=True, limits=None, **variables):
    """A server that sends its spans, soon, to an address."""
    known = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "50", **variables}
    with monkeypatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        server = Server(folder, wait=wait, **(limits or {}))
    with server:
        yield server


@pytest.fixture
def collector():
    with Collector() as running:
        yield running
        running.shutdown()


def test_a_request_is_a_span_of_its_callers_trace(monkeypatch, tmp_path, collector):
    named = {"OTEL_SERVICE_NAME": "iris", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with telling(monkeypatch, linear(tmp_path), collector.address, limits={"log_requests": 1}, **named) as server:
        began = time.time_ns()
        headers = JSON | CALLED | {"user-agent": "tester/1", "x-request-id": "mine"}
        assert server.ask("POST", "/predict?secret=1", ROW, headers)[0] == 200
        parts = {name: collector.span(name)[0] for name in ("infer",)}
        span, attributes, resource = collector.span("POST /predict")
        line = json.loads(server.line(r".*mine.*")[0])
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, CALLER, "vendor=opaque")
    assert span.span_id.hex() == line["span_id"], "the log has the same id"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes == {
        "http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200, "url.path": "/predict",
        "url.scheme": "http", "network.protocol.version": "1.1", "server.address": "127.0.0.1", "server.port": server.port,
        "client.address": "127.0.0.1", "user_agent.original": "tester/1",
    }  # fmt: skip
    assert resource | {"service.name": "iris", "deployment.environment.name": "test"} == resource
    infer = parts["infer"]
    assert (infer.trace_id, infer.parent_span_id) == (span.trace_id, span.span_id)
    assert (
        span.start_time_unix_nano <= infer.start_time_unix_nano <= infer.end_time_unix_nano <= span.end_time_unix_nano
    )
    assert values(infer.attributes) == {"modelpack.model": "model", "modelpack.version": "1", "modelpack.rows": 1}


def test_errors_unknown_paths_and_probes(monkeypatch, tmp_path, collector):
    with telling(monkeypatch, table(tmp_path), collector.address) as server:
        server.ask("GET", "/readyz")
        server.ask("POST", "/predict", b'{"instances": [[1, 2]]}', JSON)
        span, attributes, resource = collector.span("POST /predict")
        assert (attributes["http.response.status_code"], span.status.code) == (400, Status.STATUS_CODE_UNSET)
        assert not span.parent_span_id
        assert resource["service.name"] == "modelpack"
        server.ask("GET", "/there/is/nothing")
        _, attributes, _ = collector.span("GET")
        assert (attributes["url.path"], attributes.get("http.route")) == ("/there/is/nothing", None)
        server.ask("PROPFIND", "/predict")
        _, attributes, _ = collector.span("HTTP /predict")
        assert (attributes["http.request.method"], attributes["http.request.method_original"]) == ("_OTHER", "PROPFIND")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    assert not [name for name in collector.named() if "readyz" in name], "probes are no spans"


def test_what_the_server_is_to_blame_for_is_an_error(monkeypatch, tmp_path, collector):
    limits = {"deadline": 0.001}
    with telling(monkeypatch, patient(tmp_path), collector.address, limits=limits) as server:
        assert server.predict({"instances": [10**9]})[0] == 504
        span, attributes, _ = collector.span("POST /predict")
        assert (span.status.code, attributes["error.type"]) == (Status.STATUS_CODE_ERROR, "504")


def test_a_caller_that_does_not_record_is_not_recorded(monkeypatch, tmp_path, collector):
    with telling(monkeypatch, linear(tmp_path), collector.address) as server:
        quiet = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
        assert server.ask("POST", "/predict", ROW, JSON | quiet)[0] == 200
        assert server.stop() == 0
    assert collector.named() == []


def test_calls_by_grpc_are_spans_too(monkeypatch, tmp_path, collector):
    with telling(monkeypatch, scaled(tmp_path, 2), collector.address, limits={"grpc_port": 0}) as server:  # noqa: SIM117
        with triton.InferenceServerClient(server.grpc_address) as client:
            x = triton.InferInput("x", [1, 1], "FP32")
            x.set_data_from_numpy(np.float32([[1]]))
            client.infer("model", [x], headers=CALLED)
            span, attributes, _ = collector.span("inference.GRPCInferenceService/ModelInfer")
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
            assert attributes == {
                "rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer",
                "rpc.response.status_code": "OK",
            }  # fmt: skip
            with pytest.raises(Exception, match="nobody"):
                client.infer("nobody", [x])
            span, attributes, _ = collector.span("inference.GRPCInferenceService/ModelInfer")
            assert (attributes["rpc.response.status_code"], span.status.code) == ("NOT_FOUND", Status.STATUS_CODE_UNSET)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_left_is_sent_at_the_end(monkeypatch, tmp_path, collector, workers):
    late = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with telling(
        monkeypatch, linear(tmp_path), collector.address, wait=False, limits={"workers": workers}, **late
    ) as server:
        end = time.monotonic() + 30
        while server.ask("GET", "/readyz")[0] != 200:
            assert time.monotonic() < end
        for _ in range(6):
            assert server.ask("POST", "/predict", ROW, JSON)[0] == 200
        assert collector.got.empty()
        assert server.stop() == 0
    assert collector.named().count("POST /predict") == 6


def test_headers_paths_and_compression_are_the_standard_ones(monkeypatch, tmp_path, collector):
    more = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    with telling(monkeypatch, linear(tmp_path), collector.address, **more) as server:
        server.ask("POST", "/predict", ROW, JSON)
        collector.span("POST /predict")
    path, headers = collector.headers[0]
    assert (path, headers["api-key"], headers["Content-Encoding"]) == ("/v1/traces", "secret", "gzip")
    assert "secret" not in "".join(server.log)


@pytest.mark.parametrize("kind", ["failing", "hanging", "gone"])
def test_a_collector_that_does_not_take_them_costs_no_answer_and_holds_up_no_end(monkeypatch, tmp_path, kind):
    short = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    with Collector(503) as failing, socket.create_server(("127.0.0.1", 0)) as other:
        address = failing.address if kind == "failing" else f"http://127.0.0.1:{other.getsockname()[1]}"
        if kind == "gone":
            other.close()
        with telling(monkeypatch, linear(tmp_path), address, limits={"drain_timeout": 1}, **short) as server:
            assert {server.ask("POST", "/predict", ROW, JSON)[0] for _ in range(30)} == {200}
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 30, "the exporter would try for a minute"
        failing.shutdown()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "zipkin"},
            "not zipkin by http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "not otlp by grpc"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a/v1/traces", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
            "no spans are sent",
        ),
    ],
)
def test_what_prevents_spans_is_told_and_prevents_no_start(monkeypatch, caplog, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("INFO", "modelpack.server"):
        assert spans.begin() is None
    assert [told in record.message for record in caplog.records] == [True] * (told is not None)


def test_without_the_extra_the_log_says_what_to_install(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from modelpack.server.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", code, "--model", str(linear(tmp_path)), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        lines = []
        while not lines or "ready: " not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        process.terminate()
        assert process.wait(30) == 0
    (told,) = [json.loads(line) for line in lines if "OpenTelemetry" in line]
    assert told["level"] == "warning"
    assert "install modelpack[otel]" in told["message"]


def test_nothing_of_it_is_loaded_where_no_collector_is_named(tmp_path):
    code = (
        "import sys, threading, time\n"
        "from modelpack.server.settings import Settings\n"
        "from modelpack.server.service import Service\n"
        "Service(Settings(model=sys.argv[1])).close()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(linear(tmp_path))], check=True)
