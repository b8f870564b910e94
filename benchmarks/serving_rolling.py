"""Rolling restarts under load: two servers behind a balancer, of which one or the other is always being replaced."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import serving_models as models
from serving_servers import OURS, Server, free_port
from serving_wire import Wire, post

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

BALANCER = Path(__file__).with_name("serving_balancer.py")
LEAST = 100_000
"""Requests in all."""
SETTLED = 0.5
"""Seconds that a new server is ready before the next one is stopped."""
WORKERS = (1, 2)
"""Of each server."""
KEPT, ONCE, CALLS = "HTTP, connections kept", "HTTP, a connection for each", "gRPC"
THREADS = {KEPT: 6, ONCE: 3, CALLS: 3}
BEHAVIOUR = (
    "HTTP goes through a balancer for TCP that knows nothing of HTTP and asks each server for its readiness 20 times a "
    "second. A client that keeps its connection opens another when an answer says `connection: close`; nobody ever "
    "asks twice. gRPC clients know both servers, and watch their health (`round_robin` and `healthCheckConfig`)."
)
_HEALTH = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}


class Clients:
    """Threads that ask as long as they may, and note what failed."""

    def __init__(self) -> None:
        self.asked = dict.fromkeys(THREADS, 0)
        self.failed: dict[str, list[str]] = {name: [] for name in THREADS}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, ask: Callable[[], str]) -> None:
        """Ask in a thread of its own; `ask` gives what went wrong, or nothing."""
        thread = threading.Thread(target=self._work, args=(name, ask))
        self._threads.append(thread)
        thread.start()

    def _work(self, name: str, ask: Callable[[], str]) -> None:
        while not self._over.is_set():
            wrong = ask()
            with self._lock:
                self.asked[name] += 1
                if wrong:
                    self.failed[name].append(wrong)

    def stop(self) -> None:
        """Let each finish what it asks."""
        self._over.set()
        for thread in self._threads:
            thread.join()


class Kept:
    """A client that keeps its connection until an answer says that it closes."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._wire: Wire | None = None

    def __call__(self) -> str:
        """Ask once."""
        try:
            self._wire = self._wire or Wire(self._port)
            answer = self._wire.ask(self._request)
        except (OSError, ValueError) as error:
            self._wire = None
            return repr(error)
        if answer.closes:
            self._wire.socket.close()
            self._wire = None
        return "" if answer.status == 200 else f"{answer.status} {answer.body[:200]!r}"


def _once(port: int, request: bytes) -> str:
    try:
        with Wire(port) as wire:
            status, body = wire.exchange(request)
    except (OSError, ValueError) as error:
        return repr(error)
    return "" if status == 200 else f"{status} {body[:200]!r}"


def _call(ports: list[int], message: bytes) -> Callable[[], str]:
    """Give a client that knows all servers and watches their health, as docs/serving.md says."""
    import grpc

    options = [
        ("grpc.service_config", json.dumps(_HEALTH)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
    channel = grpc.insecure_channel("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports), options)
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def ask() -> str:
        try:
            return "" if method(message, timeout=30) else "an empty answer"
        except grpc.RpcError as error:
            return f"{error.code()} {error.details()}"

    return ask


def _message(row: Any) -> bytes:
    from modelpack.server.grpc import schema

    request = schema.message("inference.ModelInferRequest")(model_name="model")
    request.inputs.add(name="x", datatype="FP32", shape=row.shape)
    request.raw_input_contents.append(row.tobytes())
    return request.SerializeToString()


class Fleet:
    """Two servers behind a balancer.

    Args:
        scratch: A folder for them.
        stack: Ends them, whatever happens.
    """

    def __init__(self, scratch: Path, stack: contextlib.ExitStack) -> None:
        self._scratch, self._stack = scratch, stack
        self._ports = [free_port() for _ in WORKERS]
        self.calls = [free_port() for _ in WORKERS]
        self.front = free_port()
        self._servers = [self._start(which) for which in range(len(WORKERS))]
        self.codes: list[int] = []
        command = [sys.executable, str(BALANCER), str(self.front), *map(str, self._ports)]
        balancer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(balancer.kill)
        assert balancer.stdout is not None
        balancer.stdout.readline()
        time.sleep(SETTLED)

    def _start(self, which: int) -> Server:
        settings = {"workers": WORKERS[which], "grpc_port": self.calls[which]}
        server = Server(OURS, models.ready("mlp"), self._scratch / str(which), self._ports[which], **settings)
        self._stack.callback(server.kill)
        server.await_answer(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return server

    def replace(self) -> None:
        """Stop the one whose turn it is, and wait for the next in its place."""
        which = len(self.codes) % len(WORKERS)
        self.codes.append(self._servers[which].stop())
        self._servers[which] = self._start(which)
        time.sleep(SETTLED)

    def stop(self) -> None:
        """Stop all."""
        self.codes += [server.stop() for server in self._servers]


def rolling(options: Namespace) -> tuple[str, list[dict[str, str]], list[str]]:
    """Replace one server after the other while clients ask, and count what fails."""
    row = models.row("mlp")
    request = post("/predict", row.tobytes(), "application/octet-stream", X_Shape=f"1,{row.size}")
    clients = Clients()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        fleet = Fleet(Path(scratch), stack)
        stack.callback(clients.stop)
        for name, count in THREADS.items():
            for number in range(count):
                addresses = fleet.calls[::-1] if number % 2 else fleet.calls
                ask: Callable[[], str] = {
                    KEPT: lambda: Kept(fleet.front, request),
                    ONCE: lambda: functools.partial(_once, fleet.front, request),
                    CALLS: lambda addresses=addresses: _call(addresses, _message(row)),
                }[name]()
                clients.start(name, ask)
        began = time.perf_counter()
        while len(fleet.codes) < options.rounds or sum(clients.asked.values()) < LEAST:
            fleet.replace()
        clients.stop()
        seconds = time.perf_counter() - began
        fleet.stop()
    for name, wrong in clients.failed.items():
        for text in sorted(set(wrong))[:10]:
            print(f"{name}: {wrong.count(text)} times {text}", file=sys.stderr)
    rows = [
        {"clients": f"{THREADS[name]}, {name}", "requests": f"{asked:,}", "failed": str(len(clients.failed[name]))}
        for name, asked in clients.asked.items()
    ]
    return "Rolling restarts", rows, [_told(fleet.codes, seconds, sum(clients.asked.values())), BEHAVIOUR]


def _told(codes: list[int], seconds: float, total: int) -> str:
    return (
        f"{len(codes)} stops by SIGTERM within {seconds:.0f} s and {total:,} requests; exit codes: "
        f"{', '.join(map(str, sorted(set(codes))))}. Two servers with the default drain delay of a second, with "
        f"{WORKERS[0]} and {WORKERS[1]} workers, are replaced in turn, each ready for half a second before the other "
        "is stopped."
    )
