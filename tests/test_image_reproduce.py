"""Built again by somebody else somewhere else, an image has the same bytes; where it has not, the bytes are named."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from image_support import PYTHON, little_wheels, onnx_artifact, rootfs, tar_of
from modelpack.artifact import Artifact
from modelpack.container import archive, build, packed, reproduce, wheels
from modelpack.container.compare import differences
from modelpack.container.order import Order
from modelpack.container.platforms import Bases, Platforms
from modelpack.errors import StageError
from modelpack.stages.build import BuildConfig
from modelpack.stages.build import build as stage
from support import run_stage

__all__ = ["little_wheels", "rootfs"]
TRIAL = (sys.executable, str(Path(__file__).with_name("image_trial.py")))
# It may read everything: Python itself often lies in a home directory.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
          "--ambient-caps=+dac_read_search"]  # fmt: skip
FACTS = {"precision": "float32"}


@pytest.fixture
def trials(little_wheels, monkeypatch):
    """Let the processes that build again use the tests' wheels."""
    monkeypatch.setattr(reproduce, "PROGRAM", TRIAL)
    monkeypatch.setenv("TESTS_LOCK", str(wheels.LOCK))


@pytest.fixture
def order(rootfs):
    bases = Bases.read("rootfs:base.tar", rootfs.parent)
    return Order("small", "small:1", bases, Platforms(("linux/amd64",)), labels={"a": "b"}, offline=True)


def built(tmp_path, model, order, name="image") -> Path:
    out = tmp_path / name
    out.mkdir()
    build.make(model, order, FACTS, out=out, scratch=tmp_path / f"{name}-scratch", tell=lambda _text: None)
    return out / archive.ARCHIVE


def test_built_twice_more_it_is_the_same(tmp_path, order, trials):
    model = onnx_artifact(tmp_path)
    assert "the same bytes" in reproduce.check(model, order, FACTS, built(tmp_path, model, order))


@pytest.mark.parametrize(
    ("spoiled", "line"),
    [
        ("environment", r"linux/amd64: configuration: config\.Env\[\d+\]: \"WHERE=UTC\" and \"WHERE=Pacific/Chatham\""),
        ("file", r"layer wheels: \S+/alpha/__pycache__/__init__\.cpython-311\.pyc: 3 bytes differ, the first at 40: 55 54"),
    ],
)  # fmt: skip
def test_what_depends_on_where_it_is_built_is_named(tmp_path, order, trials, monkeypatch, spoiled, line):
    model = onnx_artifact(tmp_path)
    monkeypatch.setenv("TESTS_SPOIL", spoiled)
    with pytest.raises(StageError, match="two builds of one image differ") as caught:
        reproduce.check(model, order, FACTS, built(tmp_path, model, order))
    assert caught.value.exit_code == 3
    assert re.search(line, caught.value.then)


def test_an_image_that_was_built_otherwise_before_is_told_from_this_ones(tmp_path, order, trials):
    model = onnx_artifact(tmp_path)
    old = built(tmp_path, model, replace(order, labels={"a": "c"}))
    with pytest.raises(StageError, match="the image in the store differs") as caught:
        reproduce.check(model, order, FACTS, old)
    assert 'config.Labels.a: "c" and "b"' in caught.value.then


def test_a_build_that_fails_is_told(tmp_path, order, trials, monkeypatch):
    model = onnx_artifact(tmp_path)
    image = built(tmp_path, model, order)
    order.bases.refs[0][1].path.write_bytes(tar_of({"bin/true": (0o755, b"")}))
    with pytest.raises(StageError, match="could not be built again") as caught:
        reproduce.check(model, order, FACTS, image)
    assert "no Python 3" in caught.value.then


def test_files_modes_times_compression_and_missing_layers_are_told_apart(tmp_path, order, little_wheels, monkeypatch):
    model = onnx_artifact(tmp_path)
    plain = built(tmp_path, model, order)
    assert differences(plain, plain) == []
    later = differences(plain, built(tmp_path, model, replace(order, epoch=5), "later"))
    assert "linux/amd64: layer model: opt: mtime 0 and 5" in later
    other = differences(plain, built(tmp_path, onnx_artifact(tmp_path, 1), order, "other"))
    assert [line for line in other if line.startswith("linux/amd64: layer model: opt/modelpack/model/model.onnx: ")]
    assert not [line for line in other if "layer wheels" in line or "layer server" in line]
    monkeypatch.setattr(packed, "GZIP_LEVEL", 1)
    shutil.rmtree(little_wheels / "layers")
    weak = differences(plain, built(tmp_path, model, order, "weak"))
    assert "linux/amd64: layer server: the same files, compressed to other bytes (another zlib)" in weak
    assert not [line for line in weak if "configuration" in line]
    order.bases.refs[0][1].path.write_bytes(tar_of({**PYTHON, "new": (0o644, b"")}))
    more = differences(plain, built(tmp_path, model, order, "more"))
    assert "linux/amd64: layer base: rootfs:base.tar: its end and new at the same place" in more


def test_the_stage_checks_when_asked_and_only_the_oci_builder_can(tmp_path, rootfs, trials):
    seen = []
    settings = {"base": "rootfs:base.tar", "check_reproducible": True}
    model = onnx_artifact(tmp_path)
    image = run_stage(tmp_path, stage, settings, model=model, base=tmp_path)
    config = BuildConfig.model_validate(settings, context={"base": tmp_path})

    class Job:
        source, name, note, past = model, "test", staticmethod(seen.append), staticmethod(tuple)

    stage.effect(config, image, Job())
    assert [text for text in seen if "the same bytes" in text]
    with pytest.raises(ValidationError, match="only builder: oci is reproducible"):
        BuildConfig.model_validate({**settings, "builder": "docker"}, context={"base": tmp_path})


def test_another_user_in_another_place_builds_the_same(tmp_path, order, trials):
    """A process of its own, with an empty environment, as nobody where this user may become nobody."""
    model = onnx_artifact(tmp_path)
    image = built(tmp_path, model, order)
    someone = NOBODY if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o777)
        shutil.copytree(model.path, place / "model")
        shutil.copytree(wheels.cache_directory() / "wheels", place / "cache" / "modelpack" / "wheels")
        (place / "base.tar").write_bytes(order.bases.refs[0][1].path.read_bytes())
        (place / "lock.json").write_bytes(wheels.LOCK.read_bytes())
        (place / "tests").mkdir()
        shutil.copy(TRIAL[1], place / "tests")
        own = replace(order, bases=Bases.read("rootfs:base.tar", place))
        moved = Artifact.load(place / "model")
        (place / "order.json").write_bytes(reproduce._note(moved, own, FACTS, ()))
        for path in place.rglob("*"):
            path.chmod(0o777 if path.is_dir() else 0o644)
        command = [
            "env", "-i", "TZ=Asia/Kathmandu", "LANG=C", "LC_ALL=C", f"XDG_CACHE_HOME={place / 'cache'}", f"TESTS_LOCK={place / 'lock.json'}",
            sys.executable, str(place / "tests" / "image_trial.py"), str(place / "order.json"), "made",
        ]  # fmt: skip
        (place / "made").mkdir()
        (place / "made").chmod(0o777)
        done = subprocess.run([*someone, *command], cwd=place, umask=0o007, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made = place / "made" / archive.ARCHIVE
        assert made.stat().st_uid == (65534 if someone else os.geteuid())
        assert made.read_bytes() == image.read_bytes()
