"""The commands of docs/deploy.md work as they stand there, and the page knows every target."""

import re
import shlex
from pathlib import Path

import pytest

from commands import RECIPE, Shell, install_copy, write_recipe
from deploying import plant_image
from modelpack.deploy import TARGETS
from modelpack.store import Store

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text("utf-8")
COMMANDS = [
    shlex.split(command.replace("\\\n", " "))[1:] for command in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
]


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path / "store", [install_copy(tmp_path / "copy")], capsys, monkeypatch)
    assert shell("compress", write_recipe(tmp_path, RECIPE.replace("name: tiny", "name: quickstart"))).code == 0
    store = Store(shell.store)
    plant_image(store, store.get(shell("show", "quickstart:copy", "--json").json["id"]))
    return shell


def test_every_command_of_the_page_works(shell, tmp_path):
    for command in COMMANDS:
        done = shell(*command)
        assert done.code == 0, done.err
        assert "known by name only" not in done.err
        assert "no registry has" not in done.err
    folders = ["kubernetes", "kserve", "compose", "models", "sagemaker", "vertex", "azureml", "cloudrun", ".github"]
    assert [name for name in folders if not (tmp_path / name).is_dir()] == []


def test_the_page_knows_every_target():
    assert list(dict.fromkeys(command[1] for command in COMMANDS)) == list(TARGETS)
    headings = {
        re.sub(r"[^a-z -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= headings
