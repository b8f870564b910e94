"""What commands load: nothing heavy before it is needed, and torch never where it is not."""

import subprocess
import sys

import pytest

from commands import Shell, install_copy, write_recipe

HEAVY = {
    "torch", "torch_pruning", "torchmetrics", "onnx", "onnxruntime", "onnxscript", "numpy", "docker", "requests", "rich",
    "PIL", "pyarrow", "tokenizers", "safetensors",
}  # fmt: skip
COMPUTING = {
    "torch",
    "torch_pruning",
    "torchmetrics",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "safetensors",
    "rich",
}


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)


def loaded(shell, *arguments):
    """Run a command and name the top-level modules that it imported."""
    result = shell.spawn(*arguments, options=("-X", "importtime"))
    assert result.code == 0, result.err
    names = [line.rpartition("|")[2].strip() for line in result.err.splitlines() if line.startswith("import time:")]
    assert "modelpack.cli" in names
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ()])
def test_the_overview_loads_nothing_heavy(shell, arguments):
    assert not loaded(shell, *arguments) & (HEAVY | {"pydantic", "yaml"})


@pytest.mark.parametrize("command", ["compress", "bench", "build", "serve", "deploy", "doctor", "init"])
def test_help_of_a_command_loads_nothing_heavy(shell, command):
    assert not loaded(shell, command, "--help") & (HEAVY | {"yaml"})


def test_reading_recipes_loads_no_torch(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work")
    assert not loaded(shell, "check", recipe) & HEAVY
    assert not loaded(shell, "plan", recipe) & HEAVY
    assert not loaded(shell, "schema") & HEAVY
    assert not loaded(shell, "stages") & HEAVY


def test_a_run_from_the_store_computes_nothing(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work")
    assert "onnxruntime" in loaded(shell, "compress", recipe)
    again = loaded(shell, "compress", recipe)
    assert not again & COMPUTING
    page = ["report", "--output", tmp_path / "page.html"]
    for command in (["runs"], ["show"], page, ["verify"], ["diff", "tiny@1", "tiny@2"], ["gc", "--keep", "1"]):
        assert not loaded(shell, *command) & COMPUTING


def test_telemetry_is_off_before_anything_is_loaded(shell):
    code = "import os, sys; from modelpack import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1"
