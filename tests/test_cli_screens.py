"""What users read: overview, help, figures, tables, progress, and errors of the command line itself."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import Shell, install_copy, write_recipe
from modelpack import quantities, registry, subjects
from modelpack.artifact import Kind
from modelpack.cli import command, console, details, output, tables
from modelpack.events import BudgetChecked, Metric, Note, Progress, RunFinished, RunStarted, StepFinished, StepStarted
from modelpack.record import Run, StepRun
from modelpack.summary import changes

NAMES = [name for entries in command.CONTENTS.values() for name, _, _ in entries]


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return Shell(tmp_path / "store", [], capsys, monkeypatch)


def test_the_overview_fits_80_columns_and_says_what_commands_say(shell):
    text = shell("--help").out
    assert max(len(line) for line in text.splitlines()) <= 80
    for entries in command.CONTENTS.values():
        for name, _, summary in entries:
            assert f"  {name.ljust(8)}  {summary}\n" in text
            assert command.Group(name="x").get_command(None, name).help.split("\n")[0] == summary
    assert shell().out == text


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples_and_the_common_options(shell, name):
    result = shell(name, "--help")
    assert result.code == 0
    assert max(len(line) for line in result.out.splitlines()) <= 80
    assert f"Examples:\n  modelpack {name}" in result.out
    for option in ("--store DIR", "--json", "--quiet", "--verbose"):
        assert option in result.out.partition("Options of every command:")[2]


def test_the_version_is_told(shell):
    from modelpack import __version__

    assert shell("--version").out == f"modelpack {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["chek"], "error: no command is called 'chek'\n  did you mean 'check'?\n"),
        (
            ["--json", "runs"],
            "error: No such option: --json (Possible options: --version)\n  options come after the command, as in `modelpack runs --json`\n",
        ),
        (["check"], "error: Missing argument 'RECIPE'\n  `modelpack check --help` explains it\n"),
        (
            ["check", "a", "--stroe", "x"],
            "error: No such option: --stroe (Possible options: --json, --set, --store)\n  `modelpack check --help` explains it\n",
        ),
        (["check", "nowhere.yaml"], "error: nowhere.yaml: cannot read the recipe: No such file or directory\n"),
        (["check", "."], "error: .: cannot read the recipe: Is a directory\n"),
        (
            ["rollback", "x", "two"],
            "error: Invalid value for 'N': Input should be a valid integer, unable to parse string as an integer\n  `modelpack rollback --help` explains it\n",
        ),
        (
            ["verify", "--target", "foo"],
            (
                "error: Invalid value for '--target': 'foo' is not one of 'auto', 'vnni', 'amx', 'avx2', 'neon', 'cuda'\n"
                "  `modelpack verify --help` explains it\n"
            ),
        ),
        (
            ["show"],
            (
                "error: {store}: no run has succeeded in this store\n"
                "  run `modelpack compress RECIPE` first, or name another --store\n"
            ),
        ),
        (["stages", "prun"], "error: no stage is named 'prun'\n  did you mean 'prune'?\n"),
        (["bench", "x", "--batch", "many"], "error: --batch: 'many' is no list of numbers\n  write --batch 1,8\n"),
    ],
)
def test_mistakes_at_the_command_line_exit_2(shell, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    result = shell(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err == text.format(store=shell.store)
    as_json = shell(*arguments, "--json")
    assert as_json.json["exit_code"] == 2
    assert as_json.json["error"]["message"]
    assert as_json.err == ""


def test_a_device_that_is_not_there_exits_4(shell, tmp_path):
    from modelpack import device

    if not device.cuda_lacks():
        pytest.skip("this machine has CUDA")
    recipe = write_recipe(tmp_path / "work", "model: {onnx: tiny.onnx}\nstages: [{bench: }]\n")
    result = shell("compress", recipe, "--device", "cuda")
    assert result.code == 4
    assert "CUDA cannot be used here" in result.err
    assert shell("compress", recipe, "--device", "gpu").code == 2


def test_odd_outputs_are_survived(shell, tmp_path):
    """A closed or full standard output, and one that cannot hold our signs."""
    command = f"{sys.executable} -m modelpack stages evaluate"
    for suffix, code in ((">&-", 0), (">/dev/full", 4), ("2>&-", 0), ("| true", 0)):
        done = subprocess.run(["sh", "-c", f"{command} {suffix}"], capture_output=True, text=True, check=False)
        assert done.returncode == code, suffix
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
    plain = shell.spawn("stages", "quantize", PYTHONIOENCODING="ascii")
    assert plain.code == 0
    assert "?" in plain.out


def test_completion_can_be_installed(shell, tmp_path):
    result = shell.spawn(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert result.code == 0, result.err
    assert "modelpack" in (tmp_path / ".bashrc").read_text()
    commands = shell.spawn(_MODELPACK_COMPLETE="complete_bash", COMP_WORDS="modelpack ro", COMP_CWORD="1")
    assert commands.out.split() == ["rollback"]


def test_details_come_with_v(shell, tmp_path):
    assert "Traceback" not in shell("show").err
    assert "Traceback" in shell("show", "-v").err


def test_lists_and_explanations_of_plugins(shell):
    for kind, plugins in (("stages", registry.stages()), ("sources", registry.sources())):
        listed = shell(kind, "--json").json
        assert [item["name"] for item in listed] == plugins.names()
        for name in plugins.names():
            assert shell(kind, name, "--json").json["name"] == name
    text = shell("stages", "evaluate").out
    assert "name of data" in text
    assert "required" in text


def test_doctor_finds_something_about_everything(shell):
    found = shell("doctor", "--json").json
    assert {item["topic"] for item in found} == {"versions", "processor", "devices", "images", "extras"}
    for item in found:
        assert item["found"] or item["then"] or not item["ok"], item
    assert "modelpack" in shell("doctor").out


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model_bytes", 0, "0 B"),
        ("image_size", 122_400_000, "122.4 MB"),
        ("accuracy", 0.98765, "98.8 %"),
        ("accuracy", 0.0012, "0.12 %"),
        ("accuracy_drop", -0.0034, "-0.34 pp"),
        ("latency_ms", 0.0312, "0.0312 ms"),
        ("latency_ms", 1234.5, "1234 ms"),
        ("speedup", 1.555, "1.55×"),
        ("sqnr_db", 17.08, "17.1 dB"),
        ("parameters", 105_866, "105.9 k"),
        ("cosine", 1.0, "1"),
        ("sparsity", 0.5, "50.0 %"),
        ("eval_agreement", 0.995, "99.5 %"),
        ("export_difference", 9.53e-07, "9.53e-07"),
        ("zeros", 18_432, "18.4 k"),
        ("zeros", 4608, "4608"),
        ("anything", None, "–"),
        ("anything", True, "True"),
        ("anything", "text", "text"),
        ("latency_ms", float("nan"), "nan"),
    ],
)
def test_figures_carry_their_unit(name, value, text):
    assert quantities.figure(name, value) == text


def test_what_quantizing_cost_is_told_where_no_step_evaluates():
    first = StepRun("export", "export", "onnx", "a", "a", False, 1.0, {"model_bytes": 400})
    told = {"model_bytes": 100, "quantize_agreement": 0.98, "quantize_sqnr_db": 30.0}
    found = changes([first, StepRun("quantize", "quantize", "onnx", "b", "b", False, 1.0, told)])
    assert [(item.metric, item.after) for item in found] == list(told.items())
    assert [quantities.figure(item.metric, item.after) for item in found] == ["100 B", "98.0 %", "30.0 dB"]


def ran(*steps):
    """Make steps of an id, a kind and the step that each reads; each model is 100 bytes smaller than the one before."""
    runs = []
    for place, (name, kind, read) in enumerate(steps):
        metrics = {"model_bytes": 1000 - 100 * place} if kind in ("torch", "onnx") else {}
        runs.append(StepRun(name, name, kind, f"<{name}>", name, False, 1.0, metrics, f"<{read}>" * bool(read)))
    return tuple(runs)


@pytest.mark.parametrize(
    ("last", "size"),
    [
        ([], 700),
        ([("side", "onnx", "model")], 600),  # nothing says which of both is meant: the last one
        ([("bench", "report", "small"), ("side", "onnx", "model")], 700),
        ([("side", "onnx", "model"), ("bench", "report", "small")], 700),
        ([("bench", "report", "export"), ("half", "onnx", "small")], 500),
        ([("bench", "report", "side"), ("image", "image", "small"), ("side", "onnx", "model")], 700),
    ],
)
def test_what_stands_beside_the_way_to_the_result_is_not_the_result(last, size):
    steps = [
        ("model", "torch", ""),
        ("prune", "torch", "model"),
        ("export", "onnx", "prune"),
        ("small", "onnx", "export"),
    ]
    runs = ran(*steps, *last)
    (found,) = changes(runs)
    assert (found.metric, found.before, found.after) == ("model_bytes", 1000, size)
    meant = subjects.model(
        SimpleNamespace(get=str), subjects.Subject("two", run=Run("two", 1, "succeeded", "", steps=runs)), {Kind.ONNX}
    )
    assert meant == next(step.artifact for step in runs if step.metrics.get("model_bytes") == size)


def test_rows_inside_a_result_are_a_table_with_units_and_short_digests():
    layers = [{"name": "base", "digest": "sha256:" + "ab" * 32, "size": 20_694_274, "unpacked": 56_921_600}]
    lines = details.results({"image": {"compressed": 53_480_000, "layers": layers}}).splitlines()
    assert lines[1].split() == ["compressed:", "53.5", "MB"]
    assert lines[-1].split() == ["base", "abababababab", "20.7", "MB", "56.9", "MB"]


def test_a_difference_shows_digests_as_ids():
    row = {"step": "model", "name": "weights", "a": {"sha256": "ab" * 32}, "b": None}
    text = details.difference({"a": "x@1", "b": "x@2", "recipe": "", "settings": [row], "metrics": []})
    assert text.splitlines()[-1].split() == ["model", "weights", "{sha256:", "abababababab}", "–"]


def test_a_table_fits_the_terminal_and_loses_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/very/long/path/" + "x" * 60
    text = tables.table(("name", "path", "n"), [("one", path, "1")], right=(2,))
    assert max(tables.width(line) for line in text.splitlines()) <= 40
    assert "".join(line[6:37].strip() for line in text.splitlines()[2:]) == path
    assert tables.table(("a",), []) != ""
    assert tables.width("héllo 世界") == 10


def test_json_holds_no_figure_that_is_no_number():
    assert (
        output.encode({"a": [float("nan"), 1.5, (float("inf"),)], "b": Path("x")})
        == '{"a": [null, 1.5, [null]], "b": "x"}'
    )


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_progress_tells_rate_and_time_left():
    clock = Clock()
    pace = console.Pace(clock)
    assert pace.of(Progress("a", "rows", 0, 100)) == "0/100"
    clock.now = 2.0
    assert pace.of(Progress("a", "rows", 20, 100)) == "20/100, 10.0/s, 8.0 s left"
    assert pace.of(Progress("b", "rows", 5, 0)) == "5"
    clock.now = 3.0
    assert pace.of(Progress("b", "rows", 10, 0)) == "10, 5.00/s"


def test_a_log_gets_progress_every_ten_seconds(capsys):
    clock = Clock()
    lines = console.Lines(clock=clock)
    for done in range(60):
        lines(Progress("train", "epoch 1", done, 60))
        clock.now += 1
    assert len(capsys.readouterr().err.splitlines()) == 5


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (RunStarted("", "lite0", 3, ("a", "b"), "cpu"), "lite0@3 on cpu: 2 steps"),
        (StepStarted("a", "prune", "f", "macs: 0.7 → 0.5"), "  a: runs (macs: 0.7 → 0.5)"),
        (StepFinished("a", "prune", "id", True, 0.1), "  a: in the store"),
        (StepFinished("a", "prune", "id", False, 75.0), "  a: done in 1 min 15 s"),
        (Note("a", "careful", warning=True), "  a: warning: careful"),
        (Metric("a", "accuracy", 0.5), ""),
        (
            BudgetChecked("a", "accuracy_drop", "≤ 0.01", 0.02, False),
            "  a: budget accuracy_drop ≤ 1.00 pp: 2.00 pp, NOT MET",
        ),
        (BudgetChecked("a", "size", "≤ 25%", 0.14, True), "  a: budget size ≤ 25%: 14.0 %, met"),
        (RunFinished("", "lite0", 3, "failed", 1, 2.0), "lite0@3 failed after 2.0 s"),
        (RunFinished("", "lite0", 3, "succeeded", 1, 2.0), ""),
    ],
)
def test_events_are_told_in_one_line(event, text):
    assert console.sentence(event) == text


def test_json_documents_come_from_every_command(tmp_path, capsys, monkeypatch):
    shell = Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)
    recipe = write_recipe(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    assert shell("compress", recipe).code == 0
    calls = {
        "init": ("--onnx", "work/tiny.onnx"),
        "check": (recipe,),
        "plan": (recipe,),
        "compress": (recipe,),
        "runs": (),
        "show": (),
        "diff": ("tiny@1", "tiny"),
        "report": (),
        "get": ("tiny", "--output", "out"),
        "verify": (),
        "bench": ("tiny", "--rounds", "10", "--seconds", "1"),
        "build": ("tiny", "--base", "rootfs:nowhere.tar"),
        "serve": ("tiny:cpoy",),
        "push": ("tiny", "--output", "tiny.tar"),
        "pull": ("oci-archive:tiny.tar",),
        "deploy": ("triton", "tiny", "--output", "triton"),
        "rollback": ("tiny", "1"),
        "gc": ("--keep", "1"),
        "stages": (),
        "sources": (),
        "schema": (),
        "doctor": (),
    }
    assert list(calls) == NAMES
    for name, arguments in calls.items():
        result = shell(name, *arguments, "--json")
        told = result.lines[-1] if name == "compress" else result.json
        wrong = name in ("build", "serve")
        assert result.code == (2 if wrong else 0), f"{name}: {result}"
        assert ("exit_code" in told) == wrong, name
    text = shell("bench", "tiny:copy", "--against", "tiny:model", "--rounds", "10", "--seconds", "1")
    assert text.code == 0, text.err
    assert "against tiny@1:model" in text.out
    assert "p99" in text.out
    assert Path("out/model.onnx").is_file()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
