"""The sample package of the documentation: a stage in 30 lines that works like a built-in one."""

import pytest

from commands import PLUGIN, Shell, install, install_sample, write_recipe

RECIPE = "name: tiny\nmodel: {onnx: tiny.onnx}\nstages:\n  - operators: {forbid: [Softmax]}\n"


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path / "store", [install_sample(tmp_path / "sample")], capsys, monkeypatch)


def test_it_is_thirty_lines():
    assert len((PLUGIN / "modelpack_operators.py").read_text().splitlines()) <= 30


def test_it_runs_and_is_cached(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work", RECIPE)
    first = shell("compress", recipe, "--json")
    assert first.code == 0, first.err
    assert {"event": "metric", "step": "operators", "name": "operator_count", "value": 2} in first.lines
    assert shell("compress", recipe, "--json").lines[-1]["executed"] == 0


def test_its_refusal_is_a_stage_failure(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work", RECIPE)
    result = shell("compress", recipe, "--set", "stages.operators.forbid=[Relu]")
    assert result.code == 3
    assert "operators: the model has 1 × Relu, which the target cannot run" in result.err


def test_its_settings_are_checked_and_explained(shell, tmp_path):
    recipe = write_recipe(tmp_path / "work", RECIPE.replace("forbid", "forbit"))
    result = shell("check", recipe)
    assert result.code == 2
    assert "did you mean 'forbid'?" in result.err
    assert "(from modelpack-operators)" in shell("stages").out
    assert "Operators that must not occur" in shell("stages", "operators").out


def test_two_packages_with_one_name_are_refused(shell, tmp_path, monkeypatch):
    other = install(tmp_path / "other", "modelpack-rival", {"modelpack.stages": {"operators": "rival:operators"}}, {})
    recipe = write_recipe(tmp_path / "work", RECIPE)
    monkeypatch.syspath_prepend(other)
    from modelpack import registry

    registry.stages.cache_clear()
    result = shell("check", recipe)
    assert result.code == 2
    assert "two distributions offer a stage named 'operators': modelpack-operators and modelpack-rival" in result.err
