"""Wheels: locked, taken from the cache, unpacked without what serving never needs, compiled for the image."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import pytest

from image_support import little_wheels, wheel
from modelpack.container import bytecode, install, wheels
from modelpack.container.layers import Entry
from modelpack.container.tree import SUPPORTED
from modelpack.container.wheels import Target, Wheel
from modelpack.errors import MissingError, StageError

__all__ = ["little_wheels"]
HERE = sys.version_info.minor


def test_the_lock_names_what_the_server_requires():
    locked = {item["name"]: item["version"] for item in json.loads(wheels.LOCK.read_bytes())}
    assert locked == wheels.requirements(), "run `python -m modelpack.container.wheels`"


@pytest.mark.parametrize("minor", SUPPORTED)
@pytest.mark.parametrize("machine", wheels.MACHINES)
def test_every_supported_python_and_machine_has_every_wheel(minor, machine):
    chosen = wheels.select(Target(minor, machine), ("image", "text", "grpc", "opentelemetry"))
    cuda = {name for name, kinds in wheels.OPTIONAL.items() if "cuda" in kinds}
    assert {item.name for item in chosen} == set(wheels.requirements()) - cuda
    plain = {item.name for item in wheels.select(Target(minor, machine))}
    assert plain == set(wheels.requirements()) - set(wheels.OPTIONAL)
    telling = {item.name for item in wheels.select(Target(minor, machine), ("opentelemetry",))} - plain
    assert {"opentelemetry-sdk", "requests", "protobuf", "typing-extensions"} <= telling
    assert "grpcio" not in telling
    native = next(item.file for item in chosen if item.name == "onnxruntime")
    assert f"-cp3{minor}-" in native
    assert wheels.MACHINES[machine] in native


def test_a_python_without_wheels_is_refused():
    with pytest.raises(StageError, match=r"has no wheel for Python 3\.8 on amd64"):
        wheels.select(Target(8, "amd64"))


def test_offline_the_cache_is_enough_and_a_gap_is_named(little_wheels):
    target = Target(HERE, "amd64")
    files = wheels.resolve(target, little_wheels, offline=True)
    assert [item.name for item in files] == ["alpha", "beta"]
    next(iter(files.values())).write_bytes(b"damaged")
    with pytest.raises(MissingError, match=r"not in the cache: alpha 1\.0"):
        wheels.resolve(target, little_wheels, offline=True)


def test_a_failing_download_says_what_pip_said(little_wheels, monkeypatch):
    target = Target(HERE, "amd64")
    next(iter(wheels.resolve(target, little_wheels).values())).unlink()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(MissingError, match=r"could not be downloaded: .*alpha"):
        wheels.resolve(target, little_wheels)


def test_installing_leaves_out_tests_stubs_scripts_and_records(little_wheels):
    files = wheels.resolve(Target(HERE, "amd64"), little_wheels, offline=True)
    names = sorted(entry.name for entry in install.entries(files, "site"))
    assert names == [
        "site/alpha-1.0.dist-info/METADATA",
        "site/alpha-1.0.dist-info/WHEEL",
        "site/alpha/__init__.py",
        "site/beta-1.0.dist-info/METADATA",
        "site/beta-1.0.dist-info/WHEEL",
        "site/beta.py",
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_read_out_of_a_wheel_as_zipfile_reads_them(tmp_path, method):
    file, digest = wheel(tmp_path, "one", {"a.py": b"", "b/data.bin": bytes(range(256)) * 9000, "c.py": b"x = 1\n"})
    with zipfile.ZipFile(tmp_path / file) as old, zipfile.ZipFile(tmp_path / f"new-{file}", "w", method) as new:
        for item in old.namelist():
            new.writestr(item, old.read(item))
    (tmp_path / f"new-{file}").replace(tmp_path / file)
    found = {entry.name: entry for entry in install.entries({Wheel("one", "1.0", file, digest): tmp_path / file}, "s")}
    with zipfile.ZipFile(tmp_path / file) as archive:
        for name in ("a.py", "b/data.bin", "c.py"):
            assert b"".join(found[f"s/{name}"].chunks()) == archive.read(name)


def test_a_compression_that_installers_need_not_know_is_refused(tmp_path):
    file, digest = wheel(tmp_path, "one", {"a.py": b"1"})
    with zipfile.ZipFile(tmp_path / file) as old, zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_LZMA) as new:
        for item in old.namelist():
            new.writestr(item, old.read(item))
    (tmp_path / "new").replace(tmp_path / file)
    with pytest.raises(StageError, match="compressed in a way"):
        install.entries({Wheel("one", "1.0", file, digest): tmp_path / file}, "s")


def test_two_wheels_with_one_file_and_a_broken_wheel_are_refused(tmp_path):
    files = {}
    for name in ("one", "two"):
        file, digest = wheel(tmp_path, name, {"same.py": b""})
        files[Wheel(name, "1.0", file, digest)] = tmp_path / file
    with pytest.raises(StageError, match=r"two wheels bring 'same.py'"):
        install.entries(files, "site")
    next(iter(files.values())).write_bytes(b"PK nonsense")
    with pytest.raises(StageError, match="not a valid wheel"):
        install.entries(files, "site")


def test_byte_code_is_what_python_imports_without_looking_at_the_source(tmp_path, little_wheels):
    files = wheels.resolve(Target(HERE, "amd64"), little_wheels, offline=True)
    sources = [
        *install.entries(files, "site"),
        Entry("site/gamma.py", b"VALUE = __file__\n"),
        Entry("site/bad.py", b"def"),
    ]
    compiled = {entry.name: entry.content for entry in bytecode.compiled(sources, HERE, sys.executable)}
    tag = f"cpython-3{HERE}.pyc"
    assert sorted(compiled) == [
        f"site/__pycache__/beta.{tag}", f"site/__pycache__/gamma.{tag}", f"site/alpha/__pycache__/__init__.{tag}"
    ]  # fmt: skip
    data = compiled[f"site/__pycache__/gamma.{tag}"]
    assert data[:8] == importlib.util.MAGIC_NUMBER + b"\1\0\0\0"
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / f"gamma.{tag}").write_bytes(data)
    (tmp_path / "gamma.py").write_text("VALUE = 'compiled again'")
    told = subprocess.run([sys.executable, "-c", "import gamma; print(gamma.VALUE)"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert told.strip() == str(tmp_path / "gamma.py")
    again = {entry.name: entry.content for entry in bytecode.compiled(list(reversed(sources)), HERE, sys.executable)}
    assert again == compiled


def test_an_interpreter_of_another_version_is_looked_for_by_name(tmp_path, monkeypatch):
    assert bytecode.interpreter(HERE) == sys.executable
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bytecode.interpreter(99) is None
    (tmp_path / "python3.99").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3.99").chmod(0o755)
    assert bytecode.interpreter(99) == str(tmp_path / "python3.99")
    with pytest.raises(StageError, match=r"compiling for Python 3\.99 failed"):
        bytecode.compiled([Entry("a.py", b"")], 99, str(tmp_path / "python3.99"))


def test_the_cache_follows_xdg_and_a_user_without_a_home_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheels.cache_directory() == tmp_path / "modelpack"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert wheels.cache_directory() == tmp_path / "me" / ".cache" / "modelpack"

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(wheels.Path, "home", nowhere)
    with pytest.raises(MissingError, match="no place for downloads"):
        wheels.cache_directory()
