"""push and pull: a model goes to a registry, and comes back the same; what is stopped half-way leaves nothing half."""

import json
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from commands import Shell, plugins, write_recipe
from image_support import registry
from modelpack.container import patience
from modelpack.container.bundle import media
from registries import guarded, line, log_in, small
from test_bundle import packed

__all__ = ["guarded", "line", "plugins", "registry", "small"]


@pytest.fixture
def shell(tmp_path, plugins, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    shell = Shell(tmp_path / "store", plugins, capsys, monkeypatch)
    assert shell("compress", write_recipe(tmp_path / "work")).code == 0
    monkeypatch.chdir(tmp_path)
    return shell


@pytest.mark.registry
def test_a_model_comes_back_under_the_id_that_it_was_pushed_with(shell, registry, tmp_path, monkeypatch):
    pushed = shell("push", "tiny", f"{registry}/models/tiny:1.0", "--json")
    assert pushed.code == 0, pushed.err
    first = pushed.json
    assert first["reference"] == f"{registry}/models/tiny:1.0@{first['digest']}"
    assert 0 < first["sent"] < first["size"]
    again = shell("push", f"{registry}/models/tiny:1.0", "--json").json
    assert (again["digest"], again["sent"]) == (first["digest"], 0)
    pulled = shell("pull", f"{registry}/models/tiny:1.0", "--store", tmp_path / "other", "--json")
    assert pulled.code == 0, pulled.err
    assert pulled.json["artifact"] == first["artifact"]
    monkeypatch.setenv("MODELPACK_STORE", str(tmp_path / "other"))
    assert shell("verify").code == 0
    assert first["artifact"] in shell("show", first["artifact"][:8], "--json").out
    shown = shell("pull", first["reference"])
    assert f"modelpack show {first['artifact'][:12]}" in shown.out


@pytest.mark.registry
def test_a_model_comes_into_a_directory_with_what_other_tools_need(shell, registry, tmp_path):
    shell("push", "tiny", f"{registry}/models/tiny:1.0")
    pulled = shell("pull", f"{registry}/models/tiny:1.0", "--output", "out")
    assert pulled.code == 0, pulled.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["Kitfile", "Modelfile", "README.md", "manifest.json", "model.onnx", "signature.json"]
    assert pulled.out.splitlines() == [f"wrote {Path('out') / name}" for name in names]
    assert "NAME tiny" in (tmp_path / "out" / "Modelfile").read_text()
    full = shell("pull", f"{registry}/models/tiny:1.0", "--output", "out")
    assert (full.code, "the place is not empty" in full.err) == (2, True)


def test_a_model_is_written_without_a_registry_and_read_again(shell, tmp_path):
    written = shell("push", "tiny", "--output", "tiny.tar", "--json").json
    assert shell("push", "--output", "tiny.oci", "--json").json["digest"] == written["digest"]
    with tarfile.open("tiny.tar") as archive:
        index = json.load(archive.extractfile("index.json"))
    assert [item["artifactType"] for item in index["manifests"]] == [media.ARTIFACT]
    for place in ("oci-archive:tiny.tar", "oci:tiny.oci"):
        pulled = shell("pull", place, "--store", "other", "--json")
        assert pulled.json["artifact"] == written["artifact"], pulled.err
        examined = shell("verify", place)
        assert (examined.code, "this is a model, not an image" in examined.err) == (2, True)
    assert "wrote" in shell("push", "tiny@1", "--output", "tiny.tar").out


@pytest.mark.registry
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo (apt-get install skopeo)")
def test_another_tool_carries_it_from_file_to_registry_to_file(shell, registry, tmp_path):
    first = shell("push", "tiny", "--output", "tiny.tar", "--json").json
    copy = ["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    for source, target in (
        ("oci-archive:tiny.tar", f"docker://{registry}/a:1"),
        (f"docker://{registry}/a:1", "oci:b:1"),
    ):
        subprocess.run([*copy, source, target], check=True, capture_output=True)
    pulled = shell("pull", "oci:b:1", "--store", "other", "--json")
    assert (pulled.json["artifact"], pulled.json["digest"]) == (first["artifact"], first["digest"]), pulled.err
    assert shell("pull", f"{registry}/a:1", "--store", "third", "--json").json["digest"] == first["digest"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 2, "what is pushed, and where to?"),
        (("a", "b", "c"), 2, "what is pushed, and where to?"),
        (("tiny",), 2, "'tiny' names no registry"),
        (("tiny", "h/Not A Name"), 2, "no image reference"),
        (("none", "127.0.0.1:9/a/b:1"), 2, "none"),
        (("tiny", "127.0.0.1:9/a/b:1"), 4, "does not answer"),
        (("tiny", "127.0.0.1:9/a/b@sha256:" + "0" * 64), 2, "the artifact has the digest"),
    ],
)
def test_a_push_that_cannot_be_is_told(shell, arguments, code, reason):
    result = shell("push", *arguments)
    assert result.code == code
    assert reason in result.err


@pytest.mark.parametrize(
    ("place", "code", "reason"),
    [
        ("oci:none", 2, "no such file"),
        ("rootfs:work/tiny.onnx", 2, "a model artifact is expected"),
        ("Not A Name", 2, "no image reference"),
        ("127.0.0.1:9/a/b:1", 4, "does not answer"),
        ("work/tiny.onnx", 2, "'work/tiny.onnx' is a file here"),
    ],
)
def test_a_pull_that_cannot_be_is_told(shell, place, code, reason):
    result = shell("pull", place)
    assert result.code == code
    assert reason in result.err


def test_a_model_of_another_tool_wants_a_directory(shell, small):
    state, host = small
    data = b'{"mediaType":"%s"}' % media.MANIFEST.encode()
    state["answers"]["/v2/a/b/manifests/1"] = (200, data)
    result = shell("pull", f"{host}/a/b:1")
    assert (result.code, "no model that modelpack can read" in result.err) == (2, True)


def test_a_configuration_that_is_too_large_is_not_fetched(shell, small):
    state, host = small
    config = {"mediaType": media.CONFIG, "digest": "sha256:" + "0" * 64, "size": 1 << 30}
    state["answers"]["/v2/a/b/manifests/1"] = (200, json.dumps({"config": config, "layers": []}).encode())
    result = shell("pull", f"{host}/a/b:1")
    assert (result.code, "a configuration of 1073741824 bytes" in result.err) == (3, True)
    assert len(state["seen"]) == 1


@pytest.mark.registry
def test_a_registry_with_passwords(shell, guarded, tmp_path):
    refused = shell("push", "tiny", f"{guarded}/models/tiny:1.0")
    assert refused.code == 4
    assert f"docker login {guarded}" in refused.err
    log_in(tmp_path / "docker", guarded)
    assert shell("push", "tiny", f"{guarded}/models/tiny:1.0").code == 0
    assert shell("pull", f"{guarded}/models/tiny:1.0", "--store", "other").code == 0
    shutil.rmtree(tmp_path / "docker")
    assert shell("pull", f"{guarded}/models/tiny:1.0", "--store", "other").code == 4


@pytest.mark.registry
def test_a_line_that_breaks_is_no_matter(shell, registry, line, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.0,) * 4)
    between = line(registry)
    between.breaks = [900, 700, 1500]
    pushed = shell("push", "tiny", f"{between.host}/models/tiny:1.0", "--json")
    assert pushed.code == 0, pushed.err
    assert not between.breaks
    assert shell("pull", f"{registry}/models/tiny:1.0", "--store", "other").code == 0


@pytest.mark.parametrize(
    ("sign", "code", "arguments"),
    [(signal.SIGKILL, -9, ()), (signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ("--output", "out"))],
)
def test_a_pull_that_is_stopped_leaves_nothing_half_and_goes_on_from_there(
    shell, small, tmp_path, sign, code, arguments
):
    state, host = small
    model, bundle = packed(tmp_path / "packed")
    for digest, blob in bundle.blobs.items():
        state["answers"][f"/v2/a/b/blobs/{digest}"] = (200, blob.read())
    state["answers"]["/v2/a/b/manifests/1"] = (200, bundle.manifest.read())
    (main,) = [item for item in model.manifest.files if item.name == "model.onnx"]
    state["held"] = f"/v2/a/b/blobs/sha256:{main.sha256}"
    other = tmp_path / "other"
    process = shell.start("pull", f"{host}/a/b:1", "--store", other, *arguments)
    part = tmp_path / "cache" / "modelpack" / "blobs" / "sha256" / f"{main.sha256}.part"
    while process.poll() is None and not (part.is_file() and part.stat().st_size == main.size // 2):
        time.sleep(0.01)
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (code, False)
    assert not (tmp_path / "out").exists()
    assert list(other.glob("artifacts/*/*")) == []
    state["held"] = ""
    state["release"].set()
    result = shell("pull", f"{host}/a/b:1", "--store", other, *arguments)
    assert result.code == 0, result.err
    assert f"bytes={main.size // 2}-" in [item.get("Range") for item in state["headers"]]
    assert list(other.glob(f"artifacts/*/{model.id}")) or (tmp_path / "out" / "model.onnx").is_file()
