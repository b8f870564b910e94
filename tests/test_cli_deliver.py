"""build and serve: from a run to an image, and to a server on this machine."""

import json
import signal
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from commands import Shell, plugins, write_recipe
from image_support import little_wheels, rootfs
from modelpack.artifact import Artifact
from modelpack.cli import pages
from modelpack.container.base import host_platform
from modelpack.summary import Image

__all__ = ["little_wheels", "plugins", "rootfs"]


@pytest.fixture
def shell(tmp_path, plugins, capsys, monkeypatch):
    shell = Shell(tmp_path / "store", plugins, capsys, monkeypatch)
    assert shell("compress", write_recipe(tmp_path / "work")).code == 0
    monkeypatch.chdir(tmp_path)
    return shell


def test_build_makes_an_image_once(shell, tmp_path, rootfs, little_wheels):
    base = f"rootfs:{rootfs}"
    first = shell("build", "tiny", "--base", base, "--tag", "mine:1.0", "--json")
    assert first.code == 0, first.err
    image = first.json
    assert image["tag"].endswith("mine:1.0")
    assert image["id"].startswith("sha256:")
    assert image["platforms"] == [host_platform()]
    known = Artifact.load(Path(image["files"][0]).parent).manifest.record["results"]["image"]
    assert image["digest"] == known["digest"] != image["id"]
    (archive,) = image["files"]
    again = shell("build", "tiny@1", "--base", base, "--tag", "mine:1.0", "--output", "copy.tar")
    assert again.code == 0, again.err
    assert "build: in the store" in again.err
    assert f"docker load -i {archive} && docker run" in again.out
    assert (tmp_path / "copy.tar").read_bytes() == Path(archive).read_bytes()
    other = shell("build", "tiny:model", "--base", base, "--tag", "mine:1.0", "--json").json
    assert other["model"] != image["model"]


def test_an_image_for_other_machines_says_so():
    image = Image("sha256:1", "sha256:2", "mine:1", ("linux/amd64", "linux/arm64"), (), 9)
    assert "for:     linux/amd64, linux/arm64\n" in pages.image(image)
    assert "for:" not in pages.image(replace(image, platforms=(host_platform(),)))


def test_the_command_and_the_step_make_the_same_artifact(shell, tmp_path, rootfs, little_wheels):
    made = shell("build", "tiny", "--base", f"rootfs:{rootfs}", "--tag", "tiny:1.0", "--json").json
    recipe = tmp_path / "work" / "tiny.yaml"
    recipe.write_text(recipe.read_text() + f"  - build: {{base: 'rootfs:{rootfs}', tag: 'tiny:1.0'}}\n")
    result = shell("compress", recipe, "--json")
    assert result.code == 0, result.err
    summary = result.lines[-1]
    assert summary["executed"] == 0
    assert summary["image"]["id"] == made["id"]
    assert shell("get", "tiny", "build", "--output", tmp_path / "out").code == 0
    assert "docker run --rm" in shell("compress", recipe).out


def test_an_image_outlives_cleaning_as_long_as_its_model(shell, rootfs, little_wheels):
    made = shell("build", "tiny", "--base", f"rootfs:{rootfs}", "--json").json
    shell("gc", "--keep", 0)
    assert shell("verify", made["artifact"][:12]).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tny"], 2, "did you mean 'tiny'?"),
        (["tiny", "--tag", "UPPER CASE"], 2, "--tag:1:1: error: 'UPPER CASE' is no image reference"),
        (["tiny", "--base", "rootfs:none.tar"], 2, "no such file or directory"),
        (["tiny", "--builder", "kaniko"], 2, "one of: docker, oci"),
    ],
)
def test_build_refuses_wrong_settings(shell, arguments, code, message):
    result = shell("build", *arguments)
    assert result.code == code
    assert message in result.err


def test_a_damaged_model_is_neither_packed_nor_served(shell, rootfs, little_wheels):
    path = Path(shell("show", "tiny:copy", "--json").json["path"]) / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for command in (["build", "tiny", "--base", f"rootfs:{rootfs}"], ["serve", "tiny", "--port", "0"]):
        result = shell(*command)
        assert result.code == 5
        assert f"{path}: changed" in result.err


def test_serve_answers_with_the_models_own_outputs(shell):
    with shell.start("serve", "tiny", "--port", "0", "--threads", "1") as process:
        address = ""
        for line in process.stderr:
            message = json.loads(line)["message"]
            address = message.rpartition(" ")[2] if "http://" in message else address
            if "ready" in line:
                break
        with urllib.request.urlopen(address) as answer:
            card = json.load(answer)
        body = json.dumps({"instances": [[0.0, 0.0, 0.0, 0.0]]}).encode()
        request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert (card["name"], card["version"]) == ("tiny", "1")
    assert found["predictions"] == [[0.0, 0.0, 0.0]]
    assert process.returncode == 0


def test_a_port_that_is_taken_is_told(shell):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = shell("serve", "tiny", "--port", taken.getsockname()[1])
    assert result.code == 3
    assert str(taken) not in result.err
    assert "tiny@1" in result.err
