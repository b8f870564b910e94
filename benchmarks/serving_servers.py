"""Our server and others over the same model, each in processes of its own, the others in environments of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from serving_wire import Wire, post

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "serving_peers"
HOME = HERE.parent / ".cache" / "serving"
_CLOCK = 2  # of time on the processor (clock_getcpuclockid(3))
PATIENCE = 300.0
"""Seconds that a server has for its first answer."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to serve.

    Attributes:
        name: What tables call it.
        command: Folder of the model, port and scratch folder → what starts it.
        path: Where rows are posted as JSON.
        body: A list of rows → the JSON value of a request.
        predictions: The JSON value of an answer → what it predicts.
        prepare: Model and scratch folder → what runs once before the first start.
    """

    name: str
    command: Callable[[Path, int, Path], list[str]]
    path: str = "/predict"
    body: Callable[[list[Any]], Any] = lambda rows: {"instances": rows}
    predictions: Callable[[Any], Any] = lambda answer: answer["predictions"]
    prepare: Callable[[Path, Path], list[str]] | None = None

    def request(self, rows: np.ndarray) -> bytes:
        """Write the request for rows."""
        return post(self.path, json.dumps(self.body(rows.tolist())).encode())

    def read(self, answer: bytes) -> np.ndarray:
        """Read an answer's predictions."""
        return np.asarray(self.predictions(json.loads(answer)), np.float32).reshape(-1)


def python(name: str) -> str:
    """Give the interpreter of a peer's environment, which is made when its requirements are new."""
    wanted, folder = (PROGRAMS / f"{name}.txt").read_text(encoding="utf-8"), HOME / name
    found, noted = folder / "bin" / "python", folder / "requirements.txt"
    if not noted.is_file() or noted.read_text(encoding="utf-8") != wanted:
        print(f"installing {' '.join(wanted.split())}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([str(found), *install, "-r", str(PROGRAMS / f"{name}.txt")], check=True)
        noted.write_text(wanted, encoding="utf-8")
    return str(found)


def _ours(model: Path, port: int, _scratch: Path) -> list[str]:
    return [
        sys.executable, "-m", "modelpack.server", "--model", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--threads", "1",
    ]  # fmt: skip


def _fastapi(_model: Path, port: int, _scratch: Path) -> list[str]:
    quiet = ["--log-level", "error", "--no-access-log"]
    return [python("fastapi"), "-m", "uvicorn", "with_fastapi:app", "--host", "127.0.0.1", "--port", str(port), *quiet]


def _litserve(_model: Path, port: int, _scratch: Path) -> list[str]:
    return [python("litserve"), "with_litserve.py", str(port)]


def _bentoml(_model: Path, port: int, _scratch: Path) -> list[str]:
    serve = ["-m", "bentoml", "serve", "with_bentoml:Rows", "--host", "127.0.0.1", "--port", str(port)]
    return [python("bentoml"), *serve, "--working-dir", str(PROGRAMS)]


def _mlserver(_model: Path, port: int, scratch: Path) -> list[str]:
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    model = {"name": "model", "implementation": "with_mlserver.Rows"}
    for name, content in (("settings.json", settings), ("model-settings.json", model)):
        (scratch / name).write_text(json.dumps(content), encoding="utf-8")
    return [str(Path(python("mlserver")).with_name("mlserver")), "start", str(scratch)]


def _mlflow(_model: Path, port: int, scratch: Path) -> list[str]:
    where = ["-m", str(scratch / "model"), "-h", "127.0.0.1", "-p", str(port)]
    return [python("mlflow"), "-m", "mlflow", "models", "serve", *where, "--env-manager", "local", "--workers", "1"]


def _lone(answer: Any) -> Any:
    found = answer["predictions"]
    return found["output"] if isinstance(found, dict) else found


def _tensor(rows: list[Any]) -> dict[str, Any]:
    values = np.asarray(rows)
    tensor = {"name": "x", "shape": values.shape, "datatype": "FP32", "data": values.ravel().tolist()}
    return {"inputs": [tensor]}


OURS = Kind("modelpack", _ours)
PEERS = {
    "bentoml": Kind("BentoML", _bentoml, predictions=lambda answer: answer),
    "litserve": Kind("LitServe", _litserve),
    "mlflow": Kind(
        "MLflow", _mlflow, "/invocations", predictions=_lone,
        prepare=lambda _model, scratch: [python("mlflow"), "with_mlflow.py", str(scratch / "model")],
    ),
    "fastapi": Kind("FastAPI", _fastapi),
    "mlserver": Kind(
        "MLServer", _mlserver, "/v2/models/model/infer",
        body=_tensor, predictions=lambda answer: answer["outputs"][0]["data"],
    ),
}  # fmt: skip


def free_port() -> int:
    """Give a port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """A server that runs.

    Args:
        kind: What serves.
        model: The folder of the model.
        scratch: A folder of its own.
        port: Where it listens; 0 takes a free one.
        settings: Of our server, as `MODELPACK_…` without the prefix.
    """

    def __init__(self, kind: Kind, model: Path, scratch: Path, port: int = 0, **settings: object) -> None:
        self.kind, self.port = kind, port or free_port()
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / "log"
        environment = _environment(model, scratch, settings)
        if kind.prepare and not (scratch / "prepared").exists():
            prepare = kind.prepare(model, scratch)
            subprocess.run(prepare, check=True, cwd=PROGRAMS, env=environment, capture_output=True)
            (scratch / "prepared").touch()
        command = kind.command(model, self.port, scratch)
        environment["PATH"] = f"{Path(command[0]).parent}:{environment['PATH']}"
        with self.log.open("w") as log:
            self.begun = time.perf_counter()
            self.process = subprocess.Popen(
                command, cwd=PROGRAMS, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def await_answer(self, request: bytes) -> float:
        """Ask until it answers 200, and give the seconds since it was started."""
        while True:
            with contextlib.suppress(OSError), Wire(self.port) as wire:
                status, _ = wire.exchange(request)
                if status == 200:
                    return time.perf_counter() - self.begun
            if self.process.poll() is not None or time.perf_counter() - self.begun > PATIENCE:
                self.kill()
                raise RuntimeError(f"{self.kind.name} does not answer:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.005)

    def cpu(self) -> float:
        """Give the seconds of processor time of all its processes."""
        return sum(_seconds(process) for process in self._tree())

    def memory(self) -> int:
        """Give the bytes that its processes hold."""
        pages = (int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in self._tree())
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def _tree(self) -> Iterator[int]:
        waiting = [self.process.pid]
        while waiting:
            process = waiting.pop()
            yield process
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{process}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())

    def stop(self) -> int:
        """End it as an engine for containers does, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill()

    def kill(self) -> None:
        """End whatever is left of it; some start processes in groups of their own."""
        for process in [*self._tree()] if self.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _environment(model: Path, scratch: Path, settings: dict[str, object]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELPACK_")}
    kept |= {f"MODELPACK_{name.upper()}": str(value) for name, value in settings.items()}
    return kept | {
        "MODEL": str(model / "model.onnx"),
        "PYTHONPATH": os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(scratch),
        "BENTOML_DO_NOT_TRACK": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def _seconds(process: int) -> float:
    """Read the clock of a process, which Linux numbers by it; one that has just ended took no time that matters."""
    try:
        return time.clock_gettime((~process << 3) | _CLOCK)
    except OSError:
        return 0.0
