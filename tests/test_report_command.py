"""The command that makes a report: of runs, recipes, steps and artifacts, also where some of them are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Shell, install_copy, write_recipe
from modelpack.report import page
from pages import Reader


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    shell = Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert shell("compress", write_recipe(tmp_path / "work")).code == 0
    assert shell("compress", tmp_path / "work" / "tiny.yaml", "--set", "stages.copy.drop=0.004").code == 0
    return shell


def test_the_command_writes_a_page_of_what_json_gives(shell):
    assert shell("report").out == "wrote report.html\n"
    document = shell("report", "--json").json
    assert Path("report.html").read_text() == page.render(document)
    (told,) = document["subjects"]
    assert (told["name"], told["kind"], [item["id"] for item in told["steps"]]) == ("tiny@2", "run", ["model", "copy"])
    assert told["steps"][1]["config"]["drop"] == 0.004
    assert told["text"].startswith("name: tiny")
    assert [line["name"] for line in told["budget"]] == ["accuracy_drop", "size"]
    assert shell("report", "--json").out == shell("report", "--json").out
    Path("report.html").unlink()
    assert shell("report", "--json").code == 0
    assert not Path("report.html").exists(), "--json alone writes no file"


def test_runs_recipes_steps_and_artifacts_are_reported_side_by_side(shell):
    run = shell("show", "tiny@1", "--json").json
    artifact = run["steps"][1]["artifact"]
    named = ("tiny@1", "work/tiny.yaml", "tiny@1:copy", artifact[:8])
    assert shell("report", *named, "-o", "all.html").out == "wrote all.html\n"
    document = shell("report", *named, "--json").json
    assert [item["name"] for item in document["subjects"]] == ["tiny@1", "tiny@2", "tiny@1:copy", artifact[:12]]
    one = document["subjects"][2]
    assert (one["kind"], one["status"], [item["id"] for item in one["steps"]]) == ("artifact", "", ["model", "copy"])
    assert one["steps"] == document["subjects"][3]["steps"]
    assert "Side by side" in Reader(Path("all.html").read_text()).text


def test_what_was_cleaned_away_leaves_its_figures(shell):
    first = shell("show", "tiny@1", "--json").json["steps"][1]
    shutil.rmtree(Path(shell("show", first["artifact"], "--json").json["path"]).resolve(), ignore_errors=True)
    told = shell("report", "tiny@1", "--json").json["subjects"][0]["steps"][1]
    assert told["gone"] is True
    assert told["metrics"] == first["metrics"]
    assert shell("report", "tiny@1").code == 0
    assert "no longer in the store" in Path("report.html").read_text()


def test_mistakes_are_told(shell, tmp_path):
    file = shell("report", "work/tiny.onnx")
    assert file.code == 2
    assert "nothing is recorded of a file outside the store" in file.err
    assert shell("report", "tny").code == 2
    assert shell("report", "none.yaml").code == 2
    nowhere = shell("report", "-o", tmp_path / "none" / "page.html")
    assert nowhere.code == 2
    assert "cannot write: No such file or directory" in nowhere.err
