"""verify of a model: what it prints, its exit codes, and what it takes for a model, a reference and rows."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import failures
from commands import Shell, plugins, write_recipe
from modelpack.numerics import checks

__all__ = ["plugins"]


@pytest.fixture
def shell(tmp_path, plugins, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path / "store", plugins, capsys, monkeypatch)


def planted(case):
    """Put a case into the current directory: model, float model and rows."""
    onnx.save(case.model, "model.onnx")
    onnx.save(case.reference, "float.onnx")
    np.savez("rows.npz", **case.feed)


def test_a_failure_is_told_with_cause_and_remedy(shell):
    planted(failures.padded_batch())
    result = shell("verify", "model.onnx", "--data", "rows.npz", "--against", "float.onnx", "--skip", "speed")
    assert result.code == 3
    (line,) = (line for line in result.out.splitlines() if line.startswith("padding"))
    assert "FAILED" in line
    assert "keep the Add, Where and Softmax of attention in float" in line
    assert result.out.splitlines()[-1].startswith("model.onnx: 1 failed, ")
    assert "made up" not in result.err


def test_json_holds_every_check(shell):
    planted(failures.static(failures.convolutions(width=32)))
    result = shell("verify", "model.onnx", "--data", "rows.npz", "--against", "float.onnx", "--skip", "speed", "--json")
    assert result.code == 0
    found = result.json
    assert found["ok"] is True
    assert found["made_up_rows"] is False
    assert [item["check"] for item in found["checks"]] == [name for name in checks.CHECKS if name != "speed"]
    assert {item["verdict"] for item in found["checks"]} == {"ok", "not checked"}


def test_made_up_rows_are_said_to_be(shell):
    planted(failures.static(failures.convolutions(width=32)))
    result = shell("verify", "model.onnx")
    assert result.code == 0
    assert "the rows are made up within what the model says it takes; name real ones with --data" in result.err
    assert "there is no float model to compare with" in result.out


def test_rows_come_from_a_recipe_too(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work", RECIPE)
    result = shell("verify", "work/tiny.onnx", "--data", f"{recipe}:val")
    assert result.code == 0, result.err
    wrong = shell("verify", "work/tiny.onnx", "--data", f"{recipe}:vla")
    assert wrong.code == 2
    assert "did you mean 'val'?" in wrong.err


RECIPE = """\
name: tiny
model: {onnx: tiny.onnx}
data: {val: {random: {rows: 12}}}
stages:
  - copy: {drop: 0.002}
"""


def test_the_store_holds_models_too(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work", RECIPE)
    assert shell("compress", recipe).code == 0
    assert shell("verify", "tiny").out.startswith("ok: 2 artifacts")
    result = shell("verify", "tiny:copy", "--data", f"{recipe}:val", "--against", "tiny:model", "--skip", "speed")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1].startswith("tiny@1:copy: ")
    path = next((tmp_path / "store" / "artifacts").rglob("model.onnx"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    damaged = shell("verify", "tiny:copy", "--data", f"{recipe}:val", "--against", "tiny:model")
    assert damaged.code == 5
    assert str(path) in damaged.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.onnx"], 2, "no such file"),
        (["text.onnx"], 2, "text.onnx: cannot be read as an ONNX file: it is cut short"),
        (["short.onnx"], 2, "short.onnx: cannot be read as an ONNX file: it is cut short"),
        (["./text"], 2, "text: no such file"),
        (["./"], 2, "this is a directory, a file is expected"),
        (["folder.onnx"], 2, "folder.onnx: this is a directory, a file is expected"),
        (["model.onnx", "--skip", "sped"], 2, "did you mean 'speed'?"),
        (["model.onnx", "--target", "z80"], 2, "'z80' is not one of"),
        (["model.onnx", "--data", "none.npz"], 2, "no such file"),
        (["model.onnx", "--data", "model.onnx"], 2, "this names no rows"),
        (["model.onnx", "--data", "other.npz"], 2, "the model reads x; the data have y"),
        (["model.onnx", "--data", "wide.npz"], 2, "wide.npz: input 'x' has size 9 in dimension 1"),
        (["model.onnx", "--against", "text.onnx"], 2, "text.onnx: cannot be read as an ONNX file: it is cut short"),
    ],
)
def test_what_cannot_be_examined_is_an_error(shell, arguments, code, message):
    planted(failures.static(failures.products()))
    Path("text.onnx").write_text("root:x:0:0")
    Path("short.onnx").write_bytes(Path("model.onnx").read_bytes()[:-9])
    Path("folder.onnx").mkdir()
    np.savez("other.npz", y=np.zeros((4, 64), np.float32))
    np.savez("wide.npz", x=np.zeros((4, 9), np.float32))
    result = shell("verify", *arguments)
    assert result.code == code
    assert message in result.err
    assert "Traceback" not in result.err
