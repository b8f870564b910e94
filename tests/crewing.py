"""What the tests of crews share: running a function in several processes that are one crew, without torchrun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHILD = """
import importlib, json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from modelpack.numerics.training import crew
crew._BACKENDS["cuda"] = os.environ.get("CREW_OVER", crew._BACKENDS["cuda"])
module, name, rank, size, port, device, given = sys.argv[2:]
with crew.enrolled(int(rank), int(size), torch.device(device), ("127.0.0.1", int(port), rank == "0"), 60):
    result = getattr(importlib.import_module(module), name)(**json.loads(given))
print(json.dumps(result))
"""


def together(module: str, name: str, size: int = 2, device: str = "cpu", **given) -> list:
    """Call a function of a test module in each process of a crew; gives what each returned, a JSON value."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                CHILD,
                str(HERE),
                module,
                name,
                *map(str, (rank, size, port, device)),
                json.dumps(given, default=str),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        said = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, errors) in zip(children, said, strict=True):
        assert child.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in said]
