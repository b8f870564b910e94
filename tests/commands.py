"""What the tests of the command line share: a recipe that runs in a second, plugins, and calling commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpack import cli, registry

PLUGIN = Path(__file__).parent / "plugin"

COPY = '''
import shutil, time
from pydantic import Field
from modelpack.artifact import Kind
from modelpack.stage import Job, StageConfig, stage

class CopyConfig(StageConfig):
    """How to copy."""
    drop: float = Field(0.0, description="What to claim as loss of accuracy.")
    seconds: float = Field(0.0, description="How long to take.")
    crash: bool = Field(False, description="Whether to fail in a way that no stage should.")
    warn: str = Field("", description="What to warn of.")

@stage(version=1, accepts={Kind.ONNX}, produces=Kind.ONNX, gauges=lambda config: ("accuracy_drop",))
def copy(config: CopyConfig, job: Job) -> None:
    """Copy the model, and claim something about it."""
    for name in ("model.onnx", "signature.json"):
        shutil.copyfile(job.source.file(name), job.out / name)
    if config.seconds:
        print("COPYING", flush=True)
    for _ in job.track(range(int(config.seconds * 20)), int(config.seconds * 20), "copying"):
        time.sleep(0.05)
    if config.crash:
        raise RuntimeError("a wheel came off")
    if config.warn:
        job.warn(config.warn)
    job.metric("accuracy_drop", config.drop)
'''
RECIPE = """\
name: tiny
model: {onnx: tiny.onnx}
budget: {accuracy_drop: 0.01, size: 110%}
stages:
  - copy: {drop: 0.002}
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def install(place: Path, name: str, entries: dict[str, dict[str, str]], modules: dict[str, str]) -> Path:
    """Lay out a distribution the way an installer does: modules, and metadata with entry points."""
    info = place / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entries.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (place / f"{module}.py").write_text(text)
    return place


def install_copy(place: Path) -> Path:
    """Install the stage `copy`, which the tests run in place of real ones."""
    entries = {"modelpack.stages": {"copy": "copying:copy"}}
    return install(place, "modelpack-copy", entries, {"copying": textwrap.dedent(COPY)})


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Install the stage that copies, once for all tests of a file."""
    return [install_copy(tmp_path_factory.mktemp("copy"))]


def install_sample(place: Path) -> Path:
    """Install the sample package that the documentation shows."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    modules = {path.stem: path.read_text() for path in PLUGIN.glob("*.py")}
    return install(place, project["name"], project["entry-points"], modules)


def write_recipe(place: Path, text: str = RECIPE) -> Path:
    """Put a recipe beside a tiny ONNX model: four numbers in, three out."""
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "fc"), helper.make_node("Relu", ["h"], ["y"], "relu")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    place.mkdir(parents=True, exist_ok=True)
    onnx.save(model, place / "tiny.onnx")
    recipe = place / "tiny.yaml"
    recipe.write_text(text)
    return recipe


class Shell:
    """Calls commands, in this process or in one of their own, all with one store."""

    def __init__(self, store: Path, plugins: list[Path], capsys: Any, monkeypatch: Any) -> None:
        self.store, self.plugins, self._capsys = store, plugins, capsys
        for path in plugins:
            monkeypatch.syspath_prepend(path)
        monkeypatch.setenv("MODELPACK_STORE", str(store))
        registry.stages.cache_clear()
        registry.sources.cache_clear()

    def __call__(self, *arguments: object) -> Result:
        """Call a command in this process."""
        self._capsys.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            cli.main([str(item) for item in arguments])
        except SystemExit as done:
            code = int(done.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        told = self._capsys.readouterr()
        return Result(code, told.out, told.err)

    def start(self, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        paths = [str(path) for path in self.plugins]
        return subprocess.Popen(
            [sys.executable, *options, "-m", "modelpack", *[str(item) for item in arguments]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        )

    def spawn(self, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> Result:
        """Call a command in a process of its own."""
        process = self.start(*arguments, options=options, **environment)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)
