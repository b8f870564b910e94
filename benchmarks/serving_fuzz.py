"""Ten thousand clients that behave badly, and schemathesis on the server's own description."""

from __future__ import annotations

import collections
import itertools
import json
import re
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import serving_abuse as abuse
import serving_models as models
from serving_servers import OURS, Server, python
from serving_wire import Wire

if TYPE_CHECKING:
    from argparse import Namespace

ABUSES = 10_000
EXAMPLES = 150
"""Of each operation that schemathesis makes up, at most."""
THREADS = 8
WARM = 16_000
"""Clients after which the server's buffers have been as large as they become."""
GROWTH = 4e6
"""Bytes that the server may hold more after all others."""
LIMITS = {"max_body": 100_000, "head_timeout": 0.3, "body_timeout": 0.3, "idle_timeout": 1}
READY = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DESCRIPTION = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
MEANT = (
    "Values: NaN, ragged, huge, of wrong types, nested deeply. Binary: tensors that are not what their headers say. "
    "Smuggling: framing that two parsers could read differently. Slow: in drops, and never all. The clients are "
    "seeded; some hundreds of them are part of the test suite."
)


def fuzz(options: Namespace) -> tuple[str, list[dict[str, str]], list[str]]:
    """Send whatever a client may send.

    Raises:
        RuntimeError: When the server answers 5xx other than 503 and 504, logs an error, grows, or does not end well.
    """
    with tempfile.TemporaryDirectory() as scratch:
        served = Path(scratch) / "models"
        served.mkdir()
        for name in ("one", "two"):
            (served / name).symlink_to(models.ready("narrow"))
        with Server(OURS, served, Path(scratch) / "server", **LIMITS) as server:
            server.await_answer(READY)
            with Wire(server.port) as wire:
                paths = json.loads(wire.exchange(DESCRIPTION)[1])["paths"]
            routes = [path for path, methods in paths.items() if "post" in methods]
            _abused(server, routes, WARM)
            before = server.memory()
            found, kinds = _abused(server, routes, ABUSES * options.rounds)
            after = server.memory()
            made = _described(server)
            last, code, log = server.memory(), server.stop(), server.log.read_text()
    if code or after > before + GROWTH or '"level":"error"' in log or "Traceback" in log:
        raise RuntimeError(f"exit code {code}, {after - before} bytes more, and the log:\n{log[-6000:]}")
    rows = [
        {"clients": f"connections: {kind}", "cases": f"{count:,}", "5xx but 503 and 504": "0"}
        for kind, count in sorted(kinds.items())
    ]
    rows.append({"clients": "schemathesis, by what it describes", "cases": f"{made:,}", "5xx but 503 and 504": "0"})
    told = ", ".join(f"{count:,} times {status}" for status, count in sorted(found.items()))
    notes = [
        (
            f"Connections of {THREADS} clients at once to a server with two models, {len(routes)} routes and short "
            f"timeouts. They were answered {told}; the others left first, or were left. The process held "
            f"{before / 1e6:.1f} MB after the first {WARM:,} (uncounted), {after / 1e6:.1f} MB after all, "
            f"{last / 1e6:.1f} MB at the end; it ended with exit code {code} and no error in its log."
        ),
        MEANT,
    ]
    return "Whatever clients send", rows, notes


def _abused(server: Server, routes: list[str], count: int) -> tuple[collections.Counter[int], collections.Counter[str]]:
    """Let clients misbehave; count statuses, and clients by their kind."""
    statuses: collections.Counter[int] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    lock, failures = threading.Lock(), []

    def work(seed: int) -> None:
        for each in itertools.islice(abuse.abuses(seed, routes), count // THREADS):
            try:
                found = each.play(server.port)
            except OSError as error:
                failures.append(f"{error!r} after {each}")
                return
            with lock:
                statuses.update(found)
                kinds[each.kind] += 1
                if abuse.wrong(found):
                    failures.append(f"{found} after {each}")

    threads = [threading.Thread(target=work, args=(count + seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(
            f"{len(failures)} failures, the first: {failures[0][:2000]}\n{server.log.read_text()[-3000:]}"
        )
    return statuses, kinds


def _described(server: Server) -> int:
    """Run schemathesis, and give how many cases it made.

    Raises:
        RuntimeError: When one of them was answered 5xx.
    """
    command = [
        str(Path(python("schemathesis")).with_name("schemathesis")), "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES),
        "--seed", "1", "--generation-database", "none", "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    made = re.search(r"(\d+) generated", done.stdout)
    if done.returncode or not made:
        raise RuntimeError(f"schemathesis failed:\n{done.stdout[-6000:]}")
    return int(made[1])
