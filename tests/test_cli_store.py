"""runs, show, diff, get, verify, rollback, gc: what they print, and what they find wrong."""

import json
import shutil
from pathlib import Path

import pytest

from commands import Shell, plugins, write_recipe

__all__ = ["plugins"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory, plugins):
    """A store with two runs whose second one differs, made by real processes."""
    place = tmp_path_factory.mktemp("filled")
    recipe = write_recipe(place / "work")

    class Nothing:
        def readouterr(self):
            return None

    with pytest.MonkeyPatch.context() as patch:
        shell = Shell(place / "store", plugins, Nothing(), patch)
        for settings in ([], ["--set", "stages.copy.drop=0.004"]):
            result = shell.spawn("compress", recipe, *settings)
            assert result.code == 0, result.err
    return place / "store"


@pytest.fixture
def shell(tmp_path, filled, plugins, capsys, monkeypatch):
    shutil.copytree(filled, tmp_path / "store")
    return Shell(tmp_path / "store", plugins, capsys, monkeypatch)


def rewrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


def test_runs_lists_the_history(shell):
    lines = shell("runs").out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["tiny@1", "tiny@2"]
    assert "current" not in lines[2]
    assert "current" in lines[3]
    found = shell("runs", "tiny", "--json").json
    assert [run["current"] for run in found] == [False, True]
    wrong = shell("runs", "tny")
    assert wrong.code == 2
    assert "did you mean 'tiny'?" in wrong.err


def test_an_empty_store_has_no_runs_and_is_not_made(shell, tmp_path):
    result = shell("runs", "--store", tmp_path / "none")
    assert (result.code, result.out) == (0, "no runs yet; `modelpack compress RECIPE` makes one\n")
    assert not (tmp_path / "none").exists()
    assert shell("show", "--store", tmp_path / "none").code == 2


def test_show_takes_runs_steps_artifacts_and_files(shell):
    run = shell("show", "tiny@1", "--json").json
    assert (run["name"], run["status"], [step["id"] for step in run["steps"]]) == (
        "tiny@1", "succeeded", ["model", "copy"],
    )  # fmt: skip
    copied = run["steps"][1]["artifact"]
    by_id = shell("show", copied[:8], "--json").json
    by_step = shell("show", "tiny@1:copy", "--json").json
    assert by_id == by_step
    newest = shell("show", "copy", "--json").json
    assert newest["config"]["drop"] == 0.004
    assert by_id["config"]["drop"] == 0.002
    assert [item["stage"] for item in by_id["lineage"]] == ["copy", "onnx_model"]
    assert [item["name"] for item in by_id["contents"]["layers"]] == ["fc"]
    assert by_id["contents"]["parameters"] == 12
    text = shell("show", copied[:6]).out
    for word in ("copy (version 1) in tiny", "accuracy_drop", "0.20 pp", "model.onnx", "MatMul", copied[:12]):
        assert word in text
    file = shell("show", f"{by_id['path']}/model.onnx", "--json").json
    assert file["parameters"] == 12
    assert shell("show").out.startswith("run:      tiny@2 (current)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tny", "did you mean 'tiny'?"),
        ("tiny@9", "there is no run 'tiny@9'"),
        ("tiny:cpoy", "did you mean 'copy'?"),
        ("abcdef0", "no artifact begins with 'abcdef0'"),
        ("nowhere.onnx", "no such file"),
        ("../tiny", "../tiny: no such file"),
    ],
)
def test_a_wrong_name_is_told(shell, name, message):
    result = shell("show", name)
    assert result.code == 2
    assert message in result.err


def test_diff_shows_settings_figures_and_overrides(shell):
    found = shell("diff", "tiny@1", "tiny@2", "--json").json
    assert found["settings"] == [{"step": "copy", "name": "drop", "a": 0.002, "b": 0.004}]
    assert "+# --set stages.copy.drop=0.004" in found["recipe"]
    drops = next(row for row in found["metrics"] if row["name"] == "accuracy_drop")
    assert (drops["a"], drops["b"]) == (0.002, 0.004)
    text = shell("diff", "tiny@1", "tiny@2").out
    assert "+0.20 pp" in text
    same = shell("diff", "tiny@1", "tiny@1").out
    assert "the recipes are the same" in same
    assert "the settings are the same" in same


def test_get_copies_a_payload_and_overwrites_nothing(shell, tmp_path):
    result = shell("get", "tiny@1", "--output", tmp_path / "out", "--json")
    assert result.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "signature.json"}
    assert shell("get", "tiny@1", "--output", tmp_path / "out").code == 2
    assert shell("get", "tiny@1", "model", "--output", tmp_path / "model").code == 0
    assert shell("get", "tiny@1", "cpoy", "--output", tmp_path / "x").code == 2


def test_get_refuses_a_damaged_artifact(shell, tmp_path):
    path = shell("show", "tiny@2:copy", "--json").json["path"]
    target = Path(path) / "model.onnx"
    rewrite(target, target.read_bytes()[:-1] + b"!")
    result = shell("get", "tiny@2", "--output", tmp_path / "out")
    assert result.code == 5
    assert str(target) in result.err
    assert not (tmp_path / "out").exists()


def test_verify_reads_everything(shell):
    result = shell("verify")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("ok: 3 artifacts")
    assert shell("verify", "--json").json["artifacts"] == 3
    assert shell("verify", "tiny@1", "--json").json["artifacts"] == 2
    identity = shell("show", "tiny@1:copy", "--json").json["id"]
    assert shell("verify", identity[:10], "--json").json["artifacts"] == 1
    assert shell("verify", "--store", shell.store / "nowhere").code == 2


def test_verify_finds_a_flip_of_any_byte(shell):
    """One bit of every file that has a known hash, at its start, middle and end."""
    files = [path for path in sorted((shell.store / "artifacts").rglob("*")) if path.is_file()]
    files += sorted((shell.store / "runs").rglob("run.json")) + sorted((shell.store / "runs").rglob("recipe.yaml"))
    assert len(files) == 13
    for path in files:
        data = path.read_bytes()
        for at in (0, len(data) // 2, len(data) - 1):
            rewrite(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            result = shell("verify")
            assert result.code == 5, f"{path} at {at}"
            assert str(path) in result.err, f"{path} at {at}"
        rewrite(path, data)
    assert shell("verify").code == 0


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda store, artifact: (artifact / "model.onnx").unlink(), "model.onnx: missing"),
        (lambda store, artifact: (artifact / "manifest.json").unlink(), "no artifact here"),
        (lambda store, artifact: (artifact / "more.txt").write_text("x"), "more.txt: not part of the artifact"),
        (lambda store, artifact: (artifact / "link").symlink_to("/etc"), "link: not part of the artifact"),
        (lambda store, artifact: artifact.rename(artifact.parent / ("0" * 64)), "named unlike its id"),
        (lambda store, artifact: (store / "artifacts" / "readme").write_text("x"), "readme: not part of the store"),
        (lambda store, artifact: next((store / "cache").iterdir()).write_text("x"), "the cache entry is damaged"),
        (lambda store, artifact: (store / "runs/tiny/current").write_text("9"), "current: names no run"),
        (lambda store, artifact: (store / "runs/tiny/0001/run.json").write_text("{}"), "record cannot be read"),
        (lambda store, artifact: (store / "runs/tiny/0001/recipe.yaml").unlink(), "recipe cannot be read"),
    ],
)
def test_verify_finds_what_is_missing_added_or_renamed(shell, damage, named):
    artifact = Path(shell("show", "tiny@1:copy", "--json").json["path"])
    artifact.chmod(0o755)
    damage(shell.store, artifact)
    result = shell("verify")
    assert result.code == 5
    assert named in result.err
    assert shell("verify", "--json").json["exit_code"] == 5


def test_verify_finds_swapped_cache_entries(shell):
    first, second, *_ = sorted((shell.store / "cache").iterdir())
    texts = first.read_text(), second.read_text()
    first.write_text(texts[1])
    second.write_text(texts[0])
    result = shell("verify")
    assert result.code == 5
    assert result.err.count("names an artifact of other work") == 2


def test_a_record_that_was_edited_is_not_believed(shell):
    path = shell.store / "runs/tiny/0001/run.json"
    body = json.loads(path.read_text())
    body["steps"][1]["metrics"]["accuracy_drop"] = 0.0
    path.write_text(json.dumps(body))
    result = shell("show", "tiny@1")
    assert result.code == 5
    assert "changed after it was written" in result.err


def test_rollback_moves_current_and_back(shell):
    assert shell("rollback", "tiny", 1).out == "tiny@1 is current\n"
    assert shell("show", "--json").json["name"] == "tiny@1", "what is current is what other commands take"
    assert shell("show", "tiny", "--json").json["number"] == 1
    assert shell("rollback", "tiny", 2).code == 0
    assert shell("show", "tiny", "--json").json["number"] == 2
    assert shell("rollback", "tiny", 9).code == 2
    assert shell("rollback", "tny", 1).code == 2


def test_gc_keeps_the_current_run_and_says_what_is_freed(shell):
    before = sum(path.stat().st_size for path in (shell.store / "artifacts").rglob("*") if path.is_file())
    (shell.store / "shared" / "answers").mkdir()
    (shell.store / "shared" / "answers" / "0000.data").write_bytes(bytes(1000))
    dry = shell("gc", "--keep", 0, "--dry-run", "--json").json
    assert (len(dry["removed"]), dry["kept"], dry["dry_run"]) == (1, 3, True)
    done = shell("gc", "--keep", 0, "--json").json
    after = sum(path.stat().st_size for path in (shell.store / "artifacts").rglob("*") if path.is_file())
    assert done["bytes"] == dry["bytes"] == before - after + 1000 > 1000
    assert not list((shell.store / "shared").iterdir())
    assert shell("verify").code == 0
    assert shell("show", "tiny@2:copy").code == 0
    gone = shell("rollback", "tiny", 1)
    assert gone.code == 2
    assert "tiny@1 cannot be current: the result of 'copy' was removed" in gone.err
    assert shell("gc", "--keep", 2).out.strip().startswith("0 artifacts removed")
    assert shell("gc", "--keep", -1).code == 2


def test_gc_waits_for_no_run(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work")
    with shell.start("compress", recipe, "--set", "stages.copy.seconds=60") as process:
        while process.stderr.readline() != "COPYING\n":
            pass
        result = shell("gc", "--keep", 1)
        process.terminate()
        process.communicate()
    assert result.code == 5
    assert "a run is using the store" in result.err


def test_a_directory_that_is_no_store_is_left_alone(shell, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    for command in (["runs"], ["verify"], ["gc", "--keep", "1"]):
        result = shell(*command, "--store", tmp_path / "photos")
        assert result.code == 5
        assert "is no modelpack store" in result.err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_names_of_runs_are_completed(shell):
    result = shell.spawn(_MODELPACK_COMPLETE="complete_bash", COMP_WORDS="modelpack show ti", COMP_CWORD="2")
    assert result.out.split() == ["tiny", "tiny@1", "tiny@2"]
