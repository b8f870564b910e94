"""The commands of the sections 'Registries' and 'Model artifacts' in docs/images.md work as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import install_copy, write_recipe
from image_support import PYTHON, little_wheels, registry, tar_of
from modelpack.container import http, upload
from modelpack.container.bundle import media

__all__ = ["little_wheels", "registry"]
PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text("utf-8")
RECIPE = "name: quickstart\nmodel: {onnx: tiny.onnx}\nstages:\n  - copy: {drop: 0.002}\n"
STAND_IN = """\
import sys
from pathlib import Path

from modelpack import cli
from modelpack.container import wheels

wheels.LOCK = Path("wheels.json")  # two small wheels in place of the server's, which are large
sys.argv += ["--base", "rootfs:base.tar"] if sys.argv[1] == "build" and "--base" not in sys.argv else []
sys.argv += ["--platform", "linux/amd64"] if sys.argv[1] == "build" else []
cli.main()
"""


def section(title) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def commands(title) -> str:
    return "".join(re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL))


@pytest.mark.registry
@pytest.mark.parametrize(("title", "count"), [("Registries", 2), ("Model artifacts", 5)])
def test_every_command_of_the_section_succeeds(tmp_path, little_wheels, registry, title, count):
    (tmp_path / "base.tar").write_bytes(tar_of(PYTHON))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    recipe = write_recipe(tmp_path, RECIPE)
    typed = commands(title).replace("registry.example", registry)
    assert typed.count("modelpack ") == count
    python = f'{sys.executable} -P "{tmp_path}/stand_in.py"'
    script = f'modelpack() {{ {python} "$@"; }}\nmodelpack compress {recipe.name}\n{typed}'
    environment = {
        **os.environ,
        "PYTHONPATH": str(install_copy(tmp_path / "plugin")),
        "MODELPACK_STORE": str(tmp_path / "store"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = "again.tar" if title == "Registries" else "digits/model.onnx"
    assert (tmp_path / result).is_file()


def test_the_sections_name_what_is_so():
    assert http.PLAIN in section("Registries")
    assert f"{upload.CHUNK >> 20} MB" in section("Registries")
    for kind in (media.WEIGHTS, media.SETTINGS, media.DOCUMENTS):
        assert f"`{kind}`" in section("Model artifacts")
