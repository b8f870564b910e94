"""The build stage: settings, and an image whose every byte is known."""

import hashlib
import json
import tarfile

import pytest
from pydantic import ValidationError

from image_support import PYTHON, little_wheels, onnx_artifact, rootfs, tar_of
from modelpack import canonical
from modelpack.container import bytecode, plan, wheels
from modelpack.container.deliver import deliver
from modelpack.container.order import full_tag
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.events import Note
from modelpack.stage import Outside
from modelpack.stages.build import BuildConfig, build
from support import run_stage

__all__ = ["little_wheels", "rootfs"]


def config(tmp_path, **settings) -> BuildConfig:
    return BuildConfig.model_validate(settings, context={"base": tmp_path})


def made(root, tmp_path, model, **settings):
    return run_stage(root, build, {"base": "rootfs:base.tar", **settings}, model=model, base=tmp_path)


def blobs(archive) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}


def settings_of(files) -> dict:
    (docker,) = json.loads(files["manifest.json"])
    return json.loads(files[docker["Config"]])


def test_settings_are_read_and_described(tmp_path, rootfs):
    read = config(tmp_path, base="rootfs:base.tar", tag="lite0:1.0", output="out/image.tar", builder="docker")
    assert read.base.of("linux/amd64").path == rootfs
    assert read.output == tmp_path / "out" / "image.tar"
    assert str(config(tmp_path).base) == "docker://python:3.11-slim"
    assert all(info.description for info in BuildConfig.model_fields.values())
    assert BuildConfig.model_json_schema()["properties"]["base"]["type"] == "string"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tag": "Not A Tag"}, "no image reference"),
        ({"push": "host/"}, "no image reference"),
        ({"push": "h/x@sha256:" + "0" * 64}, "cannot be chosen"),
        ({"base": "rootfs:none.tar"}, "no such file"),
        ({"base": ""}, "a base image is expected"),
        ({"builder": "podman"}, "oci"),
        ({"platform": "windows/amd64"}, "linux/amd64"),
        ({"template": "none"}, "no such file"),
        ({"epoch": -1}, "greater than or equal"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, reason):
    with pytest.raises(ValidationError, match=reason):
        config(tmp_path, **settings)


def test_what_is_in_the_image_is_its_identity_and_where_it_goes_is_not(tmp_path, rootfs, monkeypatch):
    plain = canonical.digest(config(tmp_path, base="rootfs:base.tar"))
    assert canonical.digest(config(tmp_path, base="rootfs:base.tar", output="x", push="h/x", offline=True)) == plain
    assert canonical.digest(config(tmp_path, base="rootfs:base.tar", tag="x")) != plain
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99")
    assert canonical.digest(config(tmp_path, base="rootfs:base.tar")) != plain
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        config(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    sources = tmp_path / "server"
    sources.mkdir()
    (sources / "app.py").write_text("changed = 1")
    monkeypatch.setattr(plan, "SERVER_SOURCES", sources)
    assert canonical.digest(config(tmp_path, base="rootfs:base.tar")) != plain
    monkeypatch.undo()
    rootfs.write_bytes(tar_of({**PYTHON, "new": (0o644, b"")}))
    assert canonical.digest(config(tmp_path, base="rootfs:base.tar")) != plain


def test_the_image_is_the_same_bytes_twice_and_holds_what_it_should(tmp_path, rootfs, little_wheels):
    model = onnx_artifact(tmp_path)
    first = made(tmp_path / "1", tmp_path, model, tag="small:2.0", labels={"my.label": "yes"})
    second = made(tmp_path / "2", tmp_path, model, tag="small:2.0", labels={"my.label": "yes"})
    assert first.id == second.id
    files = blobs(first.file("image.tar"))
    for name, data in files.items():
        assert not name.startswith("blobs/") or hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    (docker,) = json.loads(files["manifest.json"])
    entry, *_ = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])
    image = first.manifest.record["results"]["image"]
    assert docker["RepoTags"] == ["small:2.0"]
    assert manifest["config"]["digest"] == image["id"] == f"sha256:{docker['Config'].rpartition('/')[2]}"
    assert first.read_json("image.json")["id"] == image["id"]
    assert [item["name"] for item in image["layers"]] == ["base", "wheels", "server", "model"]
    assert first.metrics["image_size"] == sum(item["unpacked"] for item in image["layers"])
    settings = settings_of(files)
    assert settings["config"]["User"] == "65532:65532"
    assert settings["config"]["Entrypoint"] == [
        "/usr/bin/python3.11", "-m", "modelpack_server", "--model", "/opt/modelpack/model"
    ]  # fmt: skip
    assert settings["config"]["Healthcheck"]["Test"] == ["CMD", *settings["config"]["Entrypoint"], "--healthcheck"]
    assert "ORT_DISABLE_TELEMETRY=1" in settings["config"]["Env"]
    labels = settings["config"]["Labels"]
    assert labels["my.label"] == "yes"
    assert labels["org.opencontainers.image.version"] == "2.0"
    assert labels["org.opencontainers.image.revision"] == model.id
    assert len([line for line in settings["history"] if not line.get("empty_layer")]) == len(manifest["layers"])


def unpacked(files, number: int) -> dict[str, tarfile.TarInfo]:
    import io

    (docker,) = json.loads(files["manifest.json"])
    with tarfile.open(fileobj=io.BytesIO(files[docker["Layers"][number]])) as layer:
        return {item.name: (item, layer.extractfile(item).read() if item.isfile() else b"") for item in layer}


def test_layers_hold_the_model_the_server_and_byte_code(tmp_path, rootfs, little_wheels):
    model = onnx_artifact(tmp_path)
    files = blobs(made(tmp_path, tmp_path, model, epoch=12).file("image.tar"))
    top = unpacked(files, -1)
    assert top["opt/modelpack/model/model.onnx"][1] == model.file("model.onnx").read_bytes()
    card = json.loads(top["opt/modelpack/model/card.json"][1])
    assert (card["name"], card["version"], card["artifact"]) == ("test", "latest", model.id)
    assert (card["precision"], card["opset"], card["parameters"]) == ("float32", 17, 12)
    server, site = unpacked(files, -2), unpacked(files, -3)
    assert "opt/modelpack/server/modelpack_server/__main__.py" in server
    assert "opt/modelpack/server/modelpack_server/requirements.txt" not in server
    assert "opt/modelpack/site-packages/alpha/__init__.py" in site
    if bytecode.interpreter(11):
        assert "opt/modelpack/server/modelpack_server/__pycache__/__main__.cpython-311.pyc" in server
        assert "opt/modelpack/site-packages/alpha/__pycache__/__init__.cpython-311.pyc" in site
    members = [item for layer in (top, server, site) for item, _ in layer.values()]
    assert {(item.mtime, item.uid, item.gid, item.mode) for item in members} == {(12, 0, 0, 0o644), (12, 0, 0, 0o755)}


def test_grpc_is_in_the_image_only_when_asked_for(tmp_path, rootfs, little_wheels, monkeypatch):
    monkeypatch.setattr(wheels, "OPTIONAL", {"beta": {"grpc"}})
    model, found = onnx_artifact(tmp_path), {}
    for asked in (False, True):
        files = blobs(made(tmp_path / str(asked), tmp_path, model, grpc=asked).file("image.tar"))
        settings = settings_of(files)["config"]
        has = "opt/modelpack/site-packages/beta.py" in unpacked(files, -3)
        found[asked] = (has, sorted(settings["ExposedPorts"]), "MODELPACK_GRPC_PORT=8081" in settings["Env"])
    assert found == {False: (False, ["8080/tcp"], False), True: (True, ["8080/tcp", "8081/tcp"], True)}
    (tmp_path / "cache").rename(tmp_path / "away")
    with pytest.raises(MissingError, match=r"not in the cache: alpha 1\.0, beta 1\.0"):
        build.preflight(config(tmp_path, base="rootfs:base.tar", offline=True, grpc=True), Outside("cpu"))


def test_a_new_model_changes_only_its_own_layer(tmp_path, rootfs, little_wheels):
    one, two = (
        made(tmp_path / str(seed), tmp_path, onnx_artifact(tmp_path, seed)).manifest.record["results"]["image"]
        for seed in (1, 2)
    )
    changed = [a["name"] for a, b in zip(one["layers"], two["layers"], strict=True) if a["digest"] != b["digest"]]
    assert changed == ["model"]


def test_without_the_images_python_byte_code_is_left_out_and_said(tmp_path, rootfs, little_wheels, monkeypatch):
    monkeypatch.setattr(bytecode, "interpreter", lambda _minor: None)
    seen = []
    image = run_stage(
        tmp_path, build, {"base": "rootfs:base.tar"}, model=onnx_artifact(tmp_path), base=tmp_path, collect=seen
    )
    assert [event.text for event in seen if isinstance(event, Note) and event.warning and "python3.11" in event.text]
    assert not [name for name in unpacked(blobs(image.file("image.tar")), -3) if name.endswith(".pyc")]


def test_the_effect_copies_the_archive_and_repeats_harmlessly(tmp_path, rootfs, little_wheels):
    image = made(tmp_path, tmp_path, onnx_artifact(tmp_path))
    output = tmp_path / "deep" / "image.tar"
    told = []
    for _ in range(2):
        deliver(image, output, None, told.append)
    assert output.read_bytes() == image.file("image.tar").read_bytes()
    assert told == [f"wrote {output}"] * 2
    assert [path.name for path in output.parent.iterdir()] == ["image.tar"]
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="cannot write"):
        deliver(image, tmp_path / "file" / "image.tar", None, told.append)


def test_a_damaged_artifact_is_not_packed(tmp_path, rootfs, little_wheels):
    model = onnx_artifact(tmp_path)
    path = model.file("model.onnx")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StageError, match="damaged"):
        made(tmp_path, tmp_path, model)


def test_preflight_finds_what_is_missing_before_anything_runs(tmp_path, rootfs, little_wheels, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    outside = Outside("cpu")
    build.preflight(config(tmp_path, base="rootfs:base.tar", offline=True), outside)
    with pytest.raises(MissingError, match="no Docker engine answers"):
        build.preflight(config(tmp_path, base="rootfs:base.tar", builder="docker"), outside)
    with pytest.raises(MissingError, match="no Docker engine answers"):
        build.preflight(config(tmp_path, base="docker-daemon:x"), outside)
    with pytest.raises(MissingError, match="does not answer"):
        build.preflight(config(tmp_path, base="127.0.0.1:9/a/b"), outside)
    with pytest.raises(MissingError, match="not in the cache"):
        build.preflight(config(tmp_path, base="127.0.0.1:9/a/b", offline=True), outside)
    rootfs.write_bytes(tar_of({"bin/true": (0o755, b"")}))
    with pytest.raises(StageError, match="no Python 3"):
        build.preflight(config(tmp_path, base="rootfs:base.tar"), outside)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, rootfs, little_wheels, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StageError, match="cannot read or write") as caught:
        made(tmp_path, tmp_path, onnx_artifact(tmp_path))
    assert "XDG_CACHE_HOME" in caught.value.then


def test_a_base_that_is_a_name_is_warned_about():
    assert not BuildConfig.model_validate({}).base.pinned


def test_tags_are_written_in_full():
    assert full_tag("host:5000/a", "x") == "host:5000/a:latest"
    with pytest.raises(UsageError, match="carries a digest"):
        full_tag(f"a@sha256:{'0' * 64}", "x")
