"""What an image's server does beyond answering: connections that it opens, files that it writes, programs that it runs.

Usage: ``python benchmarks/sealed.py ARCHIVE.tar [--requests 10000] [--workers 2]`` as root, with `strace` installed.

The image is unpacked and its own entry point runs in it by chroot, as a user without rights. `strace` follows every
process and thread of it from its first instruction to its last, through start, requests and drain.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from table import write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHANGING = (
    "creat", "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "unlink", "unlinkat", "rmdir", "truncate", "ftruncate", "chmod", "fchmod", "fchmodat", "chown",
    "fchown", "fchownat", "lchown", "utimensat", "setxattr", "fsetxattr", "mount",
)  # fmt: skip
_OPENING = ("open", "openat", "openat2")
_SENDING = ("sendto", "sendmsg", "sendmmsg")
CALLS = ("connect", *_SENDING, *_OPENING, "execve", "execveat", *_CHANGING)
_JSON = {"content-type": "application/json"}
_PAGES = ("/metrics", "/", "/openapi.json", "/readyz", "/nowhere")
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*?)\) += (-?\d+)")
_ADDRESS = re.compile(r"sa_family=AF_(?:INET6?|UNIX|NETLINK)")
_WRITING = re.compile(r"O_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND)")


@dataclass(frozen=True)
class Findings:
    """What a trace shows: calls that reach outside, calls that change files, programs that were run, all calls."""

    outgoing: tuple[str, ...]
    changed: tuple[str, ...]
    programs: tuple[str, ...]
    calls: int


def read(log: str) -> Findings:
    """Read a trace of strace; calls that failed changed nothing, but an attempt to connect counts however it ended."""
    outgoing, changed, programs, calls = [], [], [], 0
    for line in _whole(log.splitlines()):
        if (found := _LINE.match(line)) is None:
            continue
        calls += 1
        name, arguments, result = found[1], found[2], int(found[3])
        addressed = name in _SENDING and _ADDRESS.search(arguments)
        if name == "connect" or addressed:
            outgoing.append(line)
        elif result >= 0 and (name in _CHANGING or (name in _OPENING and _WRITING.search(arguments))):
            changed.append(line)
        elif name.startswith("execve") and result >= 0:
            programs.append(line)
    return Findings(tuple(outgoing), tuple(changed), tuple(programs), calls)


def _whole(lines: Sequence[str]) -> list[str]:
    """Join calls that another thread's line interrupted."""
    begun: dict[str, str] = {}
    joined = []
    for line in lines:
        process = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>").rstrip()
        elif " resumed>" in line and process in begun:
            joined.append(begun.pop(process) + line.partition(" resumed>")[2])
        else:
            joined.append(line)
    return joined


def trace(
    command: Sequence[str], log: Path, environment: Mapping[str, str], requests: int, grpc: int | None
) -> tuple[Findings, int]:
    """Run a server under strace, ask it, stop it by SIGTERM.

    Args:
        command: Starts it; the port is taken from MODELPACK_PORT.
        log: Where the trace goes.
        environment: All of its environment.
        requests: How many, half of them by gRPC where it speaks that.
        grpc: Its port for that; None where it has none.

    Returns:
        What it did, and its exit code.
    """
    calls = ",".join(f"?{name}" for name in CALLS)  # not every processor has every call
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "200", f"--trace={calls}", "-o", str(log)]
    with subprocess.Popen([*strace, *command], env=dict(environment), start_new_session=True) as process:
        try:
            port = int(environment["MODELPACK_PORT"])
            _wait(port, process)
            _ask(port, grpc, requests)
            _terminate(process.pid)
            code = process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return read(log.read_text("utf-8", "replace")), code


def _terminate(tracer: int) -> None:
    """Send SIGTERM to what strace runs; strace itself would only let go of it."""
    children = Path(f"/proc/{tracer}/task/{tracer}/children").read_text("ascii").split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)


def _wait(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with _connected(port) as connection:
                if _answer(connection, "GET", "/readyz")[0] == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not become ready under strace")


def _connected(port: int) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))


def _answer(connection: http.client.HTTPConnection, *request: Any) -> tuple[int, bytes]:
    """Ask once; gives status and body."""
    connection.request(*request)
    with connection.getresponse() as answer:
        return answer.status, answer.read()


def _ask(port: int, grpc: int | None, requests: int) -> None:
    """Send requests: predictions over both protocols, pages and documents, and some that are wrong."""
    name, feed = _described(port)
    shares = [requests // 2, requests - requests // 2] if grpc else [requests]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_by_http, port, name, feed, shares[0] // 2) for _ in range(2)]
        if grpc:
            asked += [pool.submit(_by_grpc, grpc, name, feed, shares[1] // 2) for _ in range(2)]
        for each in asked:
            each.result()


def _described(port: int) -> tuple[str, dict[str, np.ndarray]]:
    """Ask for the served model and make one row of zeros for it."""
    with _connected(port) as connection:
        name = json.loads(_answer(connection, "POST", "/v2/repository/index", b"{}", _JSON)[1])[0]["name"]
        inputs = json.loads(_answer(connection, "GET", f"/v2/models/{name}")[1])["inputs"]
    kinds = {"FP32": "float32", "INT64": "int64", "INT32": "int32", "UINT8": "uint8"}
    return name, {
        each["name"]: np.zeros([max(1, int(size)) for size in each["shape"]], kinds[each["datatype"]])
        for each in inputs
    }


def _by_http(port: int, name: str, feed: Mapping[str, np.ndarray], count: int) -> None:
    good = json.dumps({"inputs": {key: value.tolist() for key, value in feed.items()}}).encode()
    with _connected(port) as connection:
        for number in range(count):
            page = _PAGES[number // 10 % len(_PAGES)]
            request, expected = ("POST", f"/predict/{name}", good, _JSON), 200
            if number % 10 == 8:
                request, expected = ("POST", f"/predict/{name}", b'{"inputs": {"no": [', _JSON), 400
            elif number % 10 == 9:
                request, expected = ("GET", page, None, {}), 404 if page == "/nowhere" else 200
            if (status := _answer(connection, *request)[0]) != expected:
                raise SystemExit(f"{request[:2]} was answered {status}, not {expected}")


def _by_grpc(port: int, name: str, feed: Mapping[str, np.ndarray], count: int) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for key, value in feed.items():
        inputs.append(triton.InferInput(key, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for _ in range(count):
            client.infer(name, inputs)


def unpack(archive: Path, folder: Path) -> dict[str, Any]:
    """Lay out an image's files as an engine would; gives its configuration."""
    with tarfile.open(archive) as outer:
        docker = json.loads(outer.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        for name in docker["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(name)) as layer:
                layer.extractall(folder, filter="tar")
        settings: dict[str, Any] = json.loads(outer.extractfile(docker["Config"]).read())["config"]  # type: ignore[union-attr]
    return settings


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Trace an image and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, log = Path(folder) / "root", Path(folder) / "log"
        root.mkdir()
        root.chmod(0o755)
        settings = unpack(options.archive, root)
        ports = free_port(), free_port() if "8081/tcp" in settings["ExposedPorts"] else None
        environment = dict(item.split("=", 1) for item in settings["Env"]) | {
            "MODELPACK_PORT": str(ports[0]),
            "MODELPACK_WORKERS": str(options.workers),
            "MODELPACK_DRAIN_DELAY": "0.2",
            "HOME": "/",  # as engines have it for a user without a name
            **({"MODELPACK_GRPC_PORT": str(ports[1])} if ports[1] else {}),
        }
        # Only the namespace of these processes sees /proc in the image, and forgets it with them.
        run = 'mount -t proc proc "$0/proc" && exec chroot --userspec=12345:54321 "$0" "$@"'
        command = ["unshare", "--mount", "sh", "-c", run, str(root), *settings["Entrypoint"]]
        found, code = trace(command, log, environment, options.requests, ports[1])
        own = _own(log.read_text("utf-8", "replace"), settings["Entrypoint"][0])
    rows = [
        {"what": "requests", "count": f"{options.requests:,}"},
        {"what": "processes", "count": str(options.workers + (options.workers > 1))},
        {"what": "connections it opened, or tried to", "count": str(len(own.outgoing))},
        {"what": "files it opened for writing, made, renamed or removed", "count": str(len(own.changed))},
        {"what": "programs it ran, besides its own start", "count": str(len(own.programs))},
        {"what": "exit code after SIGTERM", "count": str(code)},
    ]
    for line in (*own.outgoing, *own.changed, *own.programs):
        print(line)
    spoken = "HTTP and gRPC, half each" if ports[1] else "HTTP"
    note = (
        f"{options.requests:,} requests by {spoken}, some of them wrong, to {options.workers} workers of the image's "
        "own entry point in its own files, as uid 12345; strace followed every process from start to exit and saw "
        f"{found.calls:,} calls of those that could matter."
    )
    write("sealed", "What a sealed server does", rows, [note], "python benchmarks/sealed.py image.tar")


def _own(log: str, program: str) -> Findings:
    """Leave out what came before the server's own first instruction: unshare, mount and chroot."""
    lines = log.splitlines()
    start = next(number for number, line in enumerate(lines) if f'execve("{program}"' in line and line.endswith("= 0"))
    return read("\n".join(lines[start + 1 :]))


if __name__ == "__main__":
    main()
