"""check, plan, compress, init: what they print, write and exit with."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from commands import RECIPE, Shell, plugins, write_recipe

__all__ = ["plugins"]


@pytest.fixture
def shell(tmp_path, plugins, capsys, monkeypatch):
    return Shell(tmp_path / "store", plugins, capsys, monkeypatch)


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "work")


def test_check_says_ok_and_names_the_steps(shell, recipe):
    result = shell("check", recipe)
    assert (result.code, result.out, result.err) == (0, "ok: 2 steps (model, copy)\n", "")
    assert not shell.store.exists()


def test_check_shows_every_problem_at_its_place(shell, recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    recipe.write_text("model: {onnx: missing.onnx}\nbudget: {sise: 30%}\nstages:\n  - copy: {drop: much}\n  - cpy:\n")
    result = shell("check", "tiny.yaml")
    assert result.code == 2
    assert result.out == ""
    assert result.err == (
        "tiny.yaml:1:15: error: no such file or directory: "
        f"{recipe.parent}/missing.onnx\n"
        "    1 | model: {onnx: missing.onnx}\n"
        "                      ^^^^^^^^^^^^\n"
        "tiny.yaml:2:10: error: unknown key 'sise'\n"
        "    2 | budget: {sise: 30%}\n"
        "                 ^^^^ did you mean 'size'?\n"
        "tiny.yaml:4:18: error: 'drop' should be a valid number, unable to parse string as a number\n"
        "    4 |   - copy: {drop: much}\n"
        "                         ^^^^\n"
        "tiny.yaml:5:5: error: no stage is named 'cpy'\n"
        "    5 |   - cpy:\n"
        "            ^^^ did you mean 'copy'?\n"
        "4 problems found\n"
    )
    problems = shell("check", "tiny.yaml", "--json")
    assert problems.code == problems.json["exit_code"] == 2
    assert [(item["line"], item["column"]) for item in problems.json["error"]["problems"]] == [
        (1, 15), (2, 10), (4, 18), (5, 5),
    ]  # fmt: skip


def test_check_finds_data_that_do_not_fit_the_model(shell, recipe):
    text = recipe.read_text().replace("budget", "data:\n  rows: {random: {dimensions: {length: 3}}}\nbudget")
    text = text.replace("onnx: tiny.onnx", "onnx: tiny.onnx, inputs: {x: {shape: [batch, 4]}}")
    recipe.write_text(text)
    result = shell("check", recipe)
    assert result.code == 2
    assert f"{recipe}:4:3: error: no input has a dimension 'length' after its first" in result.err


def test_set_binds_like_the_file(shell, recipe):
    assert shell("check", recipe, "--set", "stages.copy.drop=0.5").code == 0
    result = shell("check", recipe, "--set", "stages.copy.dorp=0.5")
    assert result.code == 2
    assert "--set:1:1:1: error: unknown key 'dorp'" in result.err
    assert "did you mean 'drop'?" in result.err


def test_a_first_run_executes_and_a_second_one_does_not(shell, recipe):
    planned = shell("plan", recipe)
    assert planned.code == 0
    assert "2 of 2 steps to run" in planned.out
    first = shell("compress", recipe)
    assert first.code == 0, first.err
    assert "tiny@1 succeeded" in first.out
    assert "2 of 2 steps executed" in first.out
    assert "next:  modelpack build tiny@1" in first.out
    second = shell("compress", recipe)
    assert "everything was in the store; nothing executed" in second.out
    assert "copy: in the store" in second.err
    assert "everything is in the store; nothing to run" in shell("plan", recipe).out


def test_a_plan_says_why_a_step_runs(shell, recipe):
    assert shell("compress", recipe).code == 0
    changed = shell("plan", recipe, "--set", "stages.copy.drop=0.001", "--json").json
    model, copy = changed["steps"]
    assert (model["cached"], copy["cached"]) == (True, False)
    assert copy["why"] == "drop: 0.002 → 0.001"
    assert copy["reads"] == ["model"]
    assert len(copy["fingerprint"]) == 64
    forced = shell("plan", recipe, "--force", "copy").out
    assert "forced" in forced


def test_forcing_runs_one_step_again(shell, recipe):
    assert shell("compress", recipe).code == 0
    result = shell("compress", recipe, "--force", "copy")
    assert "1 of 2 steps executed" in result.out
    wrong = shell("compress", recipe, "--force", "cpoy")
    assert wrong.code == 2
    assert "did you mean 'copy'?" in wrong.err


def test_a_run_can_end_early_but_not_before_its_budget_is_checked(shell, recipe):
    early = shell("compress", recipe, "--until", "model")
    assert early.code == 2
    assert "end with 'copy' or later" in early.err
    recipe.write_text(recipe.read_text().replace("budget: {accuracy_drop: 0.01, size: 110%}\n", ""))
    assert "1 of 1 steps to run" in shell("plan", recipe, "--until", "model").out
    assert "1 of 1 steps executed" in shell("compress", recipe, "--until", "model").out
    wrong = shell("compress", recipe, "--until", "mdel")
    assert wrong.code == 2
    assert "did you mean 'model'?" in wrong.err


def test_a_file_named_by_set_is_the_one_that_is_blamed(shell, recipe):
    (recipe.parent / "broken.onnx").write_bytes(b"hello")
    wrong = shell("check", recipe, "--set", "model.onnx=broken.onnx")
    assert wrong.code == 2
    assert "broken.onnx: cannot be read as an ONNX file" in wrong.err


def test_a_missed_budget_exits_3_with_its_table(shell, recipe):
    result = shell("compress", recipe, "--set", "stages.copy.drop=0.02")
    assert result.code == 3
    rows = {line.split()[0]: line for line in result.out.splitlines() if line}
    assert "2.00 pp" in rows["accuracy_drop"]
    assert "≤ 1.00 pp" in rows["accuracy_drop"]
    assert "NOT MET" in rows["accuracy_drop"]
    assert " met " in rows["size"]
    assert "the budget is not met: accuracy_drop is 0.02" in result.err
    assert shell("runs").out.count("failed") == 1


def test_json_is_one_event_a_line_whatever_happens(shell, recipe):
    good = shell("compress", recipe, "--json")
    assert good.code == 0
    assert good.lines[0]["event"] == "run_started"
    assert good.lines[-1]["event"] == "summary"
    assert good.lines[-1]["executed"] == 2
    bad = shell("compress", recipe, "--set", "stages.copy.drop=0.02", "--json")
    assert bad.code == bad.lines[-1]["exit_code"] == 3
    assert any(line.get("event") == "budget_checked" and not line["met"] for line in bad.lines)


def test_warnings_come_again_from_the_store(shell, recipe):
    for _ in range(2):
        result = shell("compress", recipe, "--set", "stages.copy.warn=mind the gap")
        assert "warning: mind the gap" in result.err
        assert "copy:  mind the gap" in result.out
    assert "mind the gap" in shell("compress", recipe, "--set", "stages.copy.warn=mind the gap", "--quiet").err


def test_quiet_says_nothing_when_all_is_well(shell, recipe):
    result = shell("compress", recipe, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_crash_is_called_a_bug(shell, recipe):
    result = shell("compress", recipe, "--set", "stages.copy.crash=true")
    assert result.code == 1
    assert "RuntimeError: a wheel came off" in result.err
    assert result.err.rstrip().endswith("please report it with the text above")
    as_json = shell("compress", recipe, "--set", "stages.copy.crash=true", "--json")
    assert as_json.lines[-1] == {
        "error": {
            "type": "RuntimeError",
            "message": "a wheel came off",
            "where": "",
            "then": "this is a bug in modelpack: please report it with the text above",
        },
        "exit_code": 1,
    }


def until(stream, line):
    """Read a stream up to a line."""
    for found in stream:
        if found == line:
            return
    raise AssertionError(f"{line!r} never came")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_store_consistent(shell, recipe, number, code):
    process = shell.start("compress", recipe, "--set", "stages.copy.seconds=60")
    until(process.stderr, "COPYING\n")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-2:] == [
        "interrupted",
        "  finished steps are kept: the same command goes on from there",
    ]
    assert "Traceback" not in err
    assert [run["status"] for run in shell("runs", "--json").json] == ["interrupted"]
    assert shell("verify").code == 0
    assert not list((shell.store / "tmp").iterdir())
    again = shell("compress", recipe, "--set", "stages.copy.seconds=0")
    assert "1 of 2 steps executed" in again.out


def test_a_reader_that_goes_away_ends_the_run_quietly(shell, recipe):
    with shell.start("compress", recipe, "--json", "--set", "stages.copy.seconds=60") as process:
        assert json.loads(process.stdout.readline())["event"] == "run_started"
        process.stdout.close()
        assert process.stderr.read() in ("", "COPYING\n")
        assert process.wait(timeout=60) == 141
    assert [run["status"] for run in shell("runs", "--json").json] == ["interrupted"]


def test_what_a_stage_prints_is_no_result(shell, recipe):
    result = shell("compress", recipe, "--json", "--set", "stages.copy.seconds=0.1")
    assert all("event" in line for line in result.lines)
    assert result.err == "COPYING\n"


def terminal(shell, *arguments, answers=(), place=None, **environment):
    """Run a command on a terminal of its own, typing answers; gives what appeared there."""
    leader, follower = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(shell.plugins[0]), "TERM": "xterm", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "modelpack", *map(str, arguments)],
        stdin=follower, stdout=follower, stderr=follower, cwd=place,
        env={name: value for name, value in env.items() if value is not None},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    waiting = list(answers)
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the terminal's other side is closed
            break
        seen += chunk
        if waiting and seen.rstrip().endswith((b":", b"]:")):
            os.write(leader, waiting.pop(0).encode() + b"\n")
            seen += b"\n"
    os.close(leader)
    assert process.wait(timeout=60) == 0, seen
    return seen


def test_init_asks_on_a_terminal(shell, tmp_path):
    (tmp_path / "net.py").write_text("def build():\n    return None\n")
    answers = ["net.py:build", "", "image=batch,3,8,8 mask=batch,8:int64", ""]
    seen = terminal(shell, "init", answers=answers, place=tmp_path)
    assert b"wrote recipe.yaml" in seen
    text = (tmp_path / "recipe.yaml").read_text()
    assert "mask: {shape: [batch, 8], dtype: int64}" in text
    assert "  sample: {random: {rows: 64}}" in text
    assert shell("check", tmp_path / "recipe.yaml").code == 0


def test_events_are_drawn_on_a_terminal_and_plain_elsewhere(shell, recipe):
    def on_terminal(**environment):
        return terminal(shell, "compress", recipe, "--force", "copy", **environment)

    assert b"\x1b[" in on_terminal(CI=None, NO_COLOR=None)
    for plain in ({"NO_COLOR": "1", "CI": None}, {"CI": "true"}, {"TERM": "dumb", "CI": None}):
        seen = on_terminal(**plain)
        assert b"\x1b" not in seen
        assert b"copy: done in" in seen


def test_init_writes_a_recipe_that_passes_check(shell, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = shell("init", "--onnx", "work/tiny.onnx", "--output", "new/first.yaml")
    assert result.code == 0, result.err
    text = (tmp_path / "new" / "first.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert 'onnx: "../work/tiny.onnx"' in text
    assert "x: {shape: [batch, 4], dtype: float32}" in text
    assert shell("check", "new/first.yaml").code == 0
    assert json.loads((tmp_path / "new" / "recipe.schema.json").read_text())["title"] == "modelpack recipe"
    again = shell("init", "--onnx", "work/tiny.onnx", "--output", "new/first.yaml")
    assert again.code == 2
    assert "the file exists" in again.err
    assert shell("init", "--onnx", "work/tiny.onnx", "--output", "new/first.yaml", "--force").code == 0


def test_init_for_torch_takes_factory_inputs_and_data(shell, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("def build():\n    return None\n")
    np.savez(tmp_path / "rows.npz", image=np.zeros((4, 3, 8, 8), np.float32), label=np.zeros(4, np.int64))
    result = shell(
        "init", "--factory", "net.py:build", "--input", "image=batch,3,8,8", "--data", "rows=npz:rows.npz",
        "--output", "recipe.yaml", "--name", "mine",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert shell("check", "recipe.yaml", "--json").json["name"] == "mine"
    assert "- export: {data: rows}" in (tmp_path / "recipe.yaml").read_text(), "rows of the user's, not made-up ones"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a recipe needs a model"),
        (("--factory", "net.py:build"), "a torch model needs its inputs"),
        (("--factory", "net.py:build", "--input", "image"), "'image' is no input"),
        (("--onnx", "nowhere.onnx"), "nowhere.onnx: no such file"),
        (("--onnx", "work/tiny.onnx", "--data", "a=nzp:x"), "did you mean 'npz'?"),
    ],
)
def test_init_refuses_what_no_recipe_can_hold(shell, recipe, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = shell("init", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "recipe.yaml").exists()


def test_the_recipe_of_these_tests_is_what_they_say(recipe):
    assert recipe.read_text() == RECIPE
