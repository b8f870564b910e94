"""The commands of the section 'What proves it' in docs/images.md work as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import install_copy, write_recipe
from image_support import PYTHON, little_wheels, tar_of
from modelpack.container.proof import sbom
from sigstores import running
from test_build import blobs

__all__ = ["little_wheels"]
PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text("utf-8")
SECTION = PAGE.partition("## What proves it\n")[2].partition("\n## ")[0]
RECIPE = """\
name: quickstart
model: {onnx: tiny.onnx}
stages:
  - copy: {drop: 0.002}
  - build: {base: "rootfs:base.tar", platform: linux/amd64}
"""
STAND_IN = """\
import sys
from pathlib import Path

from modelpack import cli
from modelpack.container import wheels

wheels.LOCK = Path("wheels.json")  # two small wheels in place of the server's, which are large
sys.argv += ["--base", "rootfs:base.tar", "--platform", "linux/amd64"] if sys.argv[1] == "build" else []
sys.argv += ["--trusted-root", "root.json"] if "--certificate-identity" in sys.argv else []
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_every_command_of_the_section_succeeds(tmp_path, little_wheels):
    (tmp_path / "base.tar").write_bytes(tar_of(PYTHON))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    recipe = write_recipe(tmp_path, RECIPE)
    commands = "".join(re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL))
    assert commands.count("modelpack ") == 4
    python = f'{sys.executable} -P "{tmp_path}/stand_in.py"'
    script = f'modelpack() {{ {python} "$@"; }}\nmodelpack compress {recipe.name}\n{commands}'
    with running() as sigstore:
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(install_copy(tmp_path / "plugin")), "MODELPACK_KEY_PASSWORD": "an example", "MODELPACK_STORE": str(tmp_path / "store"), **sigstore.write(tmp_path)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "oci-archive:public.tar: 7 ok" in done.stdout
    assert done.stdout.splitlines()[-1] == "oci-archive:digits.tar: 7 ok"
    (model,) = (item for item in listed(tmp_path / "digits.tar") if item["type"] == "machine-learning-model")
    assert [item["name"] for item in model["pedigree"]["ancestors"]] == ["onnx_model"]


def listed(archive) -> list:
    """Read the components that an image's list names."""
    files = blobs(archive)
    for entry in json.loads(files["index.json"])["manifests"]:
        if entry.get("artifactType") == sbom.TYPE:
            (layer,) = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])["layers"]
            return json.loads(files[f"blobs/sha256/{layer['digest'][7:]}"])["components"]
    raise AssertionError


def test_the_section_names_every_row_and_option():
    from modelpack.container.proof.keyless import CONFIG, TOKEN
    from modelpack.container.proof.keys import PASSWORD
    from modelpack.container.proof.signature import BUNDLE, SIGNED
    from test_image_proof import CHECKS

    assert re.findall(r"^\| `(\w+)` \|", SECTION, re.MULTILINE) == CHECKS
    assert all(name in SECTION for name in (PASSWORD, TOKEN, CONFIG, BUNDLE, SIGNED))
