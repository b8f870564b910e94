"""What servers cost: processor time and latency of a small model, a large one, batches, and the first answer."""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clock
import numpy as np
import serving_models as models
from serving_servers import OURS, PEERS, Server
from serving_wire import Wire, alone, load, post
from table import ratio

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from serving_servers import Kind

Page = tuple[str, list[dict[str, str]], list[str]]
"""Title, rows and notes."""
CLIENTS = 16
BINARY = "application/octet-stream"
ALONE = "the model alone"
SAME = (
    "Each serves by one process or as its documentation begins, over the same onnxruntime session with one thread, "
    "without a log of requests; every server's answer is, bit for bit, that of the model itself."
)


def kinds(options: Namespace) -> list[Kind]:
    """Give ours and the peers that are not skipped."""
    return [OURS, *(kind for name, kind in PEERS.items() if name not in options.skip)]


@contextlib.contextmanager
def running(chosen: Sequence[Kind], model: str) -> Iterator[dict[str, Server]]:
    """Run servers over one model side by side, all of them warm, which answer as the model itself does.

    Raises:
        RuntimeError: When one answers something else.
    """
    folder, row = models.ready(model), models.row(model)
    wanted = clock.session(folder / "model.onnx", 1).run(None, {"x": row})[0].reshape(-1)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        servers = {}
        for kind in chosen:
            server = stack.enter_context(Server(kind, folder, Path(scratch) / kind.name))
            server.await_answer(kind.request(row))
            with Wire(server.port) as wire:
                if not np.array_equal(kind.read(wire.exchange(kind.request(row))[1]), wanted):
                    raise RuntimeError(f"{kind.name} answers something else than the model")
            servers[kind.name] = server
        yield servers


def overhead(options: Namespace) -> Page:
    """Compare processor time and latency of a request in JSON, for one client and for many."""
    row = models.row("mlp")
    cpu: dict[tuple[str, int], list[float]] = {}
    latency: dict[str, list[float]] = {}
    with running(kinds(options), "mlp") as servers:
        for turn in range(options.rounds + 1):
            for name, server in servers.items():
                request, count = server.kind.request(row), options.requests
                for clients in (1, CLIENTS):
                    before = server.cpu()
                    taken = load(server.port, request, count, clients)
                    if turn:  # the first round warms up
                        cpu.setdefault((name, clients), []).append((server.cpu() - before) / count)
                        if clients == 1:
                            latency.setdefault(name, []).extend(taken)
        held = {name: server.memory() for name, server in servers.items()}
    rows = [
        {
            "server": name,
            "CPU, 1 client": milliseconds(cpu[name, 1]),
            "against ours": ratio(cpu[name, 1], cpu[OURS.name, 1]),
            f"CPU, {CLIENTS} clients": milliseconds(cpu[name, CLIENTS]),
            "against ours ": ratio(cpu[name, CLIENTS], cpu[OURS.name, CLIENTS]),
            "latency, 1 client": f"{1000 * min(latency[name]):.2f}, {1000 * statistics.median(latency[name]):.2f} ms",
            "memory": f"{held[name] / 1e6:.0f} MB",
        }
        for name in servers
    ]
    return "Serving a small model", rows, [_told(len(OURS.request(row)), options), SAME]


def _told(size: int, options: Namespace) -> str:
    return (
        f"A request of {size / 1000:.0f} kB of JSON to a model of 0.8 MB (784 numbers in, 10 out) that runs in some 15 "
        "µs: what is measured is the server. CPU: user and system time of all its processes, per request; median and "
        f"quartiles of {options.rounds} rounds of {options.requests} requests, in which the servers take turns. "
        "Latency: the least and the median. Memory: what its processes hold, pages that they share counted in each."
    )


def added(options: Namespace) -> Page:
    """Compare the latency of a binary tensor with that of the model alone."""
    folder, row = models.ready("mlp"), models.row("mlp")
    session = clock.session(folder / "model.onnx", 1)
    shape = ",".join(map(str, row.shape))
    requests = {
        "`/predict`, raw tensor": post("/predict", row.tobytes(), BINARY, X_Shape=shape, Accept=BINARY),
        "Open Inference Protocol, binary tensor": post(
            "/v2/models/model/infer", row.tobytes(), BINARY, Inference_Header_Content_Length=0
        ),
        "`/predict`, JSON": OURS.request(row),
    }
    taken: dict[str, list[float]] = {name: [] for name in ("", *requests)}
    with running([OURS], "mlp") as servers, Wire(servers[OURS.name].port) as wire:
        for turn in range(options.rounds * options.requests + 200):
            ran = timed(lambda: session.run(None, {"x": row}))
            for name, request in requests.items():
                (seconds,) = alone(wire, request, 1)
                if turn >= 200:
                    taken[name].append(seconds)
            if turn >= 200:
                taken[""].append(ran)
    least, middle = min(taken[""]), statistics.median(taken[""])
    note = (
        "The time that one client waits for its answer, over a connection that is kept, less that of `session.run` in "
        f"the client's own process ({1000 * least:.3f} ms at least, {1000 * middle:.3f} in the median); "
        f"{options.rounds * options.requests} of each, in turn, on the loopback device. The client's own time is in it."
    )
    rows = [
        {
            "request": name,
            "added, least": f"{1000 * (min(seconds) - least):.3f} ms",
            "added, median": f"{1000 * (statistics.median(seconds) - middle):.3f} ms",
            "added, 99 %": f"{1000 * (np.quantile(seconds, 0.99) - middle):.3f} ms",
        }
        for name, seconds in taken.items()
        if name
    ]
    return "What a server adds to the model", rows, [note]


def batching(options: Namespace) -> Page:
    """Compare natural batching with a run for each request, for many clients and for one."""
    folder, row = models.ready("wide"), models.row("wide")
    session = clock.session(folder / "model.onnx", 1)
    request = post("/predict", row.tobytes(), BINARY, X_Shape=f"1,{row.shape[1]}")
    many: tuple[list[float], list[float]] = ([], [])
    idle: tuple[list[float], list[float]] = ([], [])
    grown = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        servers = []
        for most in (1, 32):
            server = stack.enter_context(Server(OURS, folder, Path(scratch) / str(most), max_batch=most))
            server.await_answer(request)
            servers.append(server)
        for _ in range(options.rounds):
            for kept, server in zip(many, servers, strict=True):
                kept.append(
                    options.requests / timed(lambda port=server.port: load(port, request, options.requests, 32))
                )
            with Wire(servers[0].port) as plain, Wire(servers[1].port) as batched:
                for _ in range(options.requests // 4):
                    idle[0].extend(alone(plain, request, 1))
                    idle[1].extend(alone(batched, request, 1))
            one, eight = (timed(lambda rows=count: session.run(None, {"x": row.repeat(rows, 0)})) for count in (1, 8))
            grown.append(eight / one)
    note = (
        "A network of 55 MB, most of whose time is reading its weights: 8 rows cost "
        f"{statistics.median(grown):.1f} times one. Both servers are ours, with one thread each, one of them with "
        f"`MODELPACK_MAX_BATCH=1`; raw tensors of one row; {options.rounds} rounds of {options.requests} requests by "
        f"32 clients and {options.requests // 4} by one, request by request in turn. Median and quartiles."
    )
    return "Natural batching", [_compared("32", many, _rate), _compared("1", idle, milliseconds)], [note]


def _compared(
    clients: str, pair: tuple[list[float], list[float]], tell: Callable[[Sequence[float]], str]
) -> dict[str, str]:
    plain, batched = pair
    times = ratio(batched, plain)
    return {
        "clients": clients,
        "each for itself": tell(plain),
        "batched": tell(batched),
        "against each for itself": times,
    }


def _rate(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} requests/s"


def large(options: Namespace) -> Page:
    """Compare servers over a model that takes long."""
    folder, row = models.ready("resnet50"), models.row("resnet50")
    session = clock.session(folder / "model.onnx", 1)
    ours = {
        "modelpack, raw tensor": post("/predict", row.tobytes(), BINARY, X_Shape="1,3,224,224", Accept=BINARY),
        "modelpack, JSON": OURS.request(row),
    }
    theirs = {} if "fastapi" in options.skip else {"FastAPI, raw tensor": post("/raw", row.tobytes(), BINARY)}
    turns: dict[str, Callable[[], Any]] = {ALONE: lambda: session.run(None, {"x": row})}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        for kind, requests in ((OURS, ours), (PEERS["fastapi"], theirs)):
            if not requests:
                continue
            server = stack.enter_context(Server(kind, folder, Path(scratch) / kind.name))
            for name, request in requests.items():
                server.await_answer(request)
                wire = stack.enter_context(Wire(server.port))
                turns[name] = functools.partial(alone, wire, request, 1)
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(options.rounds + 1):
            for name, work in turns.items():
                seconds = timed(work)
                if turn:  # the first round warms up
                    taken[name].append(seconds)
    rows = [
        {
            "server": name,
            "latency": milliseconds(kept),
            "against the model alone": ratio(kept, taken[ALONE]),
        }
        for name, kept in taken.items()
    ]
    notes = [
        (
            "ResNet-50 with random weights, one image of 224x224 as float32 (0.6 MB), one thread; median and "
            f"quartiles of {options.rounds} rounds, in which they take turns. With a model of this size it hardly "
            "matters which server stands before it; what matters is that images are not sent as numbers in JSON."
        ),
    ]
    return "Serving a large model", rows, notes


def first(options: Namespace) -> Page:
    """Compare the time from a server's start to its first answer."""
    folder, row = models.ready("mlp"), models.row("mlp")
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(options.rounds + 1):
            for kind in kinds(options):
                with Server(kind, folder, Path(scratch) / kind.name) as server:
                    seconds = server.await_answer(kind.request(row))
                    if turn:  # the first round compiles Python files and fills the file cache
                        wall.setdefault(kind.name, []).append(seconds)
                        cpu.setdefault(kind.name, []).append(server.cpu())
    rows = [
        {
            "server": name,
            "first answer after": f"{statistics.median(wall[name]):.2f} s",
            "CPU": f"{statistics.median(cpu[name]):.2f} s",
            "CPU against ours": ratio(cpu[name], cpu[OURS.name]),
        }
        for name in wall
    ]
    notes = [
        (
            "From the start of the process to the first prediction of a model of 0.8 MB, with Python files compiled "
            f"and files in the cache; medians of {options.rounds} rounds in which the servers take turns. Without a "
            "container."
        ),
    ]
    return "From start to first answer", rows, notes


def timed(work: Callable[[], Any]) -> float:
    """Give the seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def milliseconds(seconds: Sequence[float]) -> str:
    """Give median and quartiles."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{1000 * middle:.2f} ms ({1000 * low:.2f} to {1000 * high:.2f})"


CASES: Mapping[str, Callable[[Namespace], Page]] = {
    "overhead": overhead, "added": added, "batching": batching, "large": large, "first": first,
}  # fmt: skip
