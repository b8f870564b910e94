"""How long it takes from `docker run` to the first prediction, and how much of that is the server.

Usage: ``python benchmarks/first_answer.py ARCHIVE.tar [--rounds 10]`` with a Docker engine (DOCKER_HOST).

Turns alternate between the image and the same image with a program that does nothing, which is what the engine and the
machine take by themselves. The server's own part is also told as CPU time, which other programs on the machine change
less than the clock.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from sealed import free_port
from table import write

SEALED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=12345:54321", "--network=host")
_TICK = os.sysconf("SC_CLK_TCK")


def docker(*command: str) -> str:
    """Ask the engine; gives what it prints."""
    return subprocess.run(["docker", *command], check=True, capture_output=True, text=True).stdout.strip()


def started(tag: str, body: bytes, path: str) -> tuple[float, float]:
    """Run the image until it predicts; gives seconds by the clock, and of CPU time in the container."""
    port = free_port()
    began = time.perf_counter()
    container = docker("run", "--detach", *SEALED, f"--env=MODELPACK_PORT={port}", tag)
    try:
        while not _predicts(port, path, body):
            if time.perf_counter() - began > 60:
                raise SystemExit(docker("logs", container))
            time.sleep(0.002)
        clock = time.perf_counter() - began
        process = docker("inspect", "--format={{.State.Pid}}", container)
        fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
        return clock, (int(fields[11]) + int(fields[12])) / _TICK
    finally:
        docker("rm", "--force", container)


def _predicts(port: int, path: str, body: bytes) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def nothing(tag: str, python: str) -> float:
    """Run a program that does nothing in the image; gives seconds by the clock until it was started and is gone."""
    began = time.perf_counter()
    docker("run", "--rm", *SEALED, f"--entrypoint={python}", tag, "-S", "-c", "pass")
    return time.perf_counter() - began


def about(archive: Path) -> tuple[str, str, dict[str, Any]]:
    """Read an archive: its tag, its Python, the signature of its model."""
    with tarfile.open(archive) as outer:
        docker_manifest = json.loads(outer.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        config = json.loads(outer.extractfile(docker_manifest["Config"]).read())["config"]  # type: ignore[union-attr]
        with tarfile.open(fileobj=outer.extractfile(docker_manifest["Layers"][-1])) as layer:
            signature = json.loads(layer.extractfile("opt/modelpack/model/signature.json").read())  # type: ignore[union-attr]
    return docker_manifest["RepoTags"][0], config["Entrypoint"][0], signature


def zeros(shape: list[int | str]) -> Any:
    """Nest lists of zeros; free dimensions are one."""
    if not shape:
        return 0
    return [zeros(shape[1:])] * (shape[0] if isinstance(shape[0], int) else 1)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    docker("load", "--input", str(options.archive))
    tag, python, signature = about(options.archive)
    body = json.dumps({"inputs": {name: zeros(item["shape"]) for name, item in signature["inputs"].items()}}).encode()
    clock, processor, idle = [], [], []
    for turn in range(options.rounds + 1):
        idle.append(nothing(tag, python))
        found = started(tag, body, "/predict")
        if turn:  # the first turn fills the file cache
            clock.append(found[0])
            processor.append(found[1])
    rows = [
        _row("docker run, to the first prediction", clock),
        _row("of which the server's CPU time", processor),
        _row("docker run, of a program that does nothing", idle[1:]),
    ]
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    note = (
        f"{options.rounds} turns of each with {' '.join(SEALED)}. While this ran, {load:.1f} programs waited for each "
        "core; where that is more than one, the clock tells of the machine, and CPU time of the image."
    )
    write("first-answer", "The first answer", rows, [note], "python benchmarks/first_answer.py image.tar")


def _row(what: str, values: list[float]) -> dict[str, str]:
    return {
        "what": what,
        "least": f"{min(values):.2f} s",
        "median": f"{statistics.median(values):.2f} s",
        "most": f"{max(values):.2f} s",
    }


if __name__ == "__main__":
    main()
