"""Small ONNX models, and servers over them in processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jsonschema
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "bool": TensorProto.BOOL,
    **{f"{name}{bits}": getattr(TensorProto, f"{name.upper()}{bits}") for name in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
JSON = {"content-type": "application/json"}


def write_model(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[list[Any], str]],
    outputs: dict[str, tuple[list[Any], str]],
    constants: dict[str, np.ndarray] | None = None,
    ranges: dict[str, list[float]] | None = None,
) -> Path:
    """Write model.onnx and signature.json as the artifact has them."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, (shape, dtype) in inputs.items()],
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, (shape, dtype) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    signature = {
        "inputs": {
            name: {"shape": shape, "dtype": dtype, "range": (ranges or {}).get(name)}
            for name, (shape, dtype) in inputs.items()
        },
        "outputs": {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in outputs.items()},
    }
    (folder / "signature.json").write_text(json.dumps(signature))
    return folder


def linear(folder: Path, rows: int | str = "batch") -> Path:
    """y = x·w over four columns."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    return write_model(
        folder,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ([rows, 4], "float32")},
        {"y": ([rows, 3], "float32")},
        {"w": weights},
    )


def scaled(folder: Path, factor: float) -> Path:
    """y = factor · x: the answer tells which version gave it."""
    return write_model(
        folder,
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        {"x": (["batch", 1], "float32")},
        {"y": (["batch", 1], "float32")},
        {"factor": np.float32(factor)},
    )


def pair(folder: Path) -> Path:
    """Two inputs that share both dynamic dimensions, two outputs of different types."""
    return write_model(
        folder,
        [
            helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Where", ["mask", "wide", "zero"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "axes"], ["total"], keepdims=0),
            helper.make_node("ReduceMax", ["ids"], ["largest"], axes=[1], keepdims=0),
        ],
        {"ids": (["batch", "length"], "int64"), "mask": (["batch", "length"], "bool")},
        {"total": (["batch"], "float32"), "largest": (["batch"], "int64")},
        {"zero": np.float32(0), "axes": np.array([1])},
        {"ids": [0, 999]},
    )


def logarithm(folder: Path) -> Path:
    """y = log(x): NaN for negative numbers, infinity for zero."""
    return write_model(
        folder,
        [helper.make_node("Log", ["x"], ["y"])],
        {"x": (["batch", 2], "float32")},
        {"y": (["batch", 2], "float32")},
    )


def table(folder: Path) -> Path:
    """Look up rows of a table of ten, without a declared range: an index beyond it fails inside the model."""
    return write_model(
        folder,
        [helper.make_node("Gather", ["table", "id"], ["row"])],
        {"id": (["batch"], "int64")},
        {"row": (["batch", 2], "float32")},
        {"table": np.arange(20, dtype="float32").reshape(10, 2)},
    )


def whole(folder: Path) -> Path:
    """Inputs and outputs without rows: a scalar and a sum."""
    return write_model(
        folder,
        [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("ReduceSum", ["scaled"], ["sum"], keepdims=0)],
        {"x": (["n"], "float32"), "scale": ([], "float32")},
        {"sum": ([], "float32")},
    )  # fmt: skip


def patient(folder: Path, *, rowwise: bool = False) -> Path:
    """Multiply matrices as often as the request says: a run as long as a test needs it.

    With `rowwise` every row gets its own number back, so that requests may share a run.
    """
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "m"], ["g"]), helper.make_node("Identity", ["go"], ["on"])],
        "step",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("h", TensorProto.FLOAT, [256, 256]),
        ],
        [value("on", TensorProto.BOOL, []), value("g", TensorProto.FLOAT, [256, 256])],
    )
    answer = [
        helper.make_node("Cast", ["steps"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["last"], ["one"], keepdims=0),
        helper.make_node("Mul", ["number", "one"], ["y"]),
    ] if rowwise else [
        helper.make_node("ReduceMean", ["last"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Slice", ["mean", "from", "to"], ["y"]),
    ]  # fmt: skip
    return write_model(
        folder,
        [
            helper.make_node("ReduceMax", ["steps"], ["count"], keepdims=0),
            helper.make_node("Loop", ["count", "", "m"], ["last"], body=body),
            *answer,
        ],
        {"steps": (["batch"], "int64")},
        {"y": (["batch" if rowwise else "one"], "float32")},
        {"m": np.eye(256, dtype="float32")} | ({} if rowwise else {"from": np.array([0]), "to": np.array([1])}),
        {"steps": [0, 10**9]},
    )


def reshaping(folder: Path) -> Path:
    """Reshape to two columns: an odd number of values fails inside the model, which cannot be known before."""
    return write_model(
        folder,
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        {"x": (["n"], "float32")},
        {"y": (["m", 2], "float32")},
        {"to": np.array([-1, 2])},
    )


ISOLATED = """
import runpy, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "modelpack", "onnx", "pydantic", "yaml", "rich", "typer"):
            raise ImportError(f"{name} is not in the image")
sys.meta_path.insert(0, Wall())
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "modelpack_server"
runpy.run_module("modelpack_server", run_name="__main__", alter_sys=True)
"""


class Server:
    """A server process; `with Server(folder) as server: server.ask(...)`.

    Args:
        folder: Of its models.
        command: What serves; `python -m modelpack.server` when None.
        wait: Whether until it is ready.
        trusting: What the test asks with, where the server speaks TLS.
        limits: Settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: list[str] | None = None,
        wait: bool = True,
        trusting: ssl.SSLContext | None = None,
        **limits: object,
    ) -> None:
        self.trusting = trusting
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELPACK_")}
        environment |= {f"MODELPACK_{name.upper()}": str(value) for name, value in limits.items()}
        environment.setdefault("MODELPACK_DRAIN_DELAY", "0")
        command = command or [sys.executable, "-W", "error", "-m", "modelpack.server"]
        self.process = subprocess.Popen(
            [*command, "--model", str(folder), "--host", "127.0.0.1", "--port", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.line(r"https?://127\.0\.0\.1:(\d+)")[1])
            if wait:
                self.line(r"ready: ")
        except BaseException:
            self.process.kill()
            self.stop()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self.lines.put(line)
        self.lines.put("")

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log."""
        while True:
            line = self.lines.get(timeout=60)
            if found := re.search(pattern, line):
                return found
            assert line, f"the server ended without {pattern!r}:\n{''.join(self.log)}"

    @property
    def grpc_address(self) -> str:
        """Where it speaks gRPC, as its log says."""
        found = re.search(r"serving gRPC on (127\.0\.0\.1:\d+)", "".join(self.log))
        assert found, "it was started without a port for gRPC"
        return found[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request on a connection of its own; names of response headers are in small letters."""
        if self.trusting is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.trusting)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def predict(self, content: Any) -> tuple[int, Any]:
        """Send JSON to /predict and read JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        status, headers, answer = self.ask("POST", "/predict", body, JSON)
        assert headers["content-type"] == "application/json"
        return status, json.loads(answer)

    def metric(self, line: str) -> float:
        """Read one sample of /metrics, 0 where it is absent."""
        text = self.ask("GET", "/metrics")[2].decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Ask until something is so, and give it; a busy machine may take its time, and only a fault takes all of it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def hammer(server: Server, outcomes: list[object], body: str | bytes = '{"instances": [0]}') -> None:
    """Ask on one connection after the other, until nobody listens any more; note each status, or what went wrong."""
    while True:
        try:
            outcomes.append(server.ask("POST", "/predict", body, JSON)[0])
        except ConnectionRefusedError:
            return
        except (OSError, http.client.HTTPException) as error:
            outcomes.append(error)


def stopped_busy(server: Server, clients: int, enough: int, *body: str | bytes) -> list[object]:
    """Stop a server once `clients` at once have had more than `enough` answers; gives what became of every request."""
    outcomes: list[object] = []
    asking = [threading.Thread(target=hammer, args=(server, outcomes, *body), daemon=True) for _ in range(clients)]
    for each in asking:
        each.start()
    wait_for(lambda: len(outcomes) > enough)
    assert server.stop() == 0
    for each in asking:
        each.join(20)
    return outcomes


def described(server: Server, path: str, status: str = "200") -> tuple[Any, Any]:
    """Give what judges requests and answers with a status of a route by its description."""
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    operation = document["paths"][path]["post"]

    def validator(content: Any) -> Any:
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema)

    return validator(operation["requestBody"]["content"]), validator(operation["responses"][status]["content"])


def receive_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Split what a connection received into answers, by their lengths."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        size = int(headers.get("content-length", "0"))
        found.append((status, headers, data[:size]))
        data = data[size:]
    return found
