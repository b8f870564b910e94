"""The base that mmdebstrap makes: the same bytes twice, and a usable Python inside."""

import shutil

import pytest

from image_support import debian
from modelpack import canonical
from modelpack.container import bytecode, rootfs
from modelpack.container.base import open_base
from modelpack.container.reference import BaseRef
from modelpack.container.tarball import Hashing, members

__all__ = ["debian"]


@pytest.mark.mmdebstrap
def test_two_rootfs_are_the_same_bytes_and_can_be_built_on(debian, tmp_path):
    rootfs.make(tmp_path / "again.tar", "amd64")
    assert canonical.file_digest(tmp_path / "again.tar") == canonical.file_digest(debian)
    base = open_base(BaseRef.parse(f"rootfs:{debian}"), "linux/amd64", cache=tmp_path, scratch=tmp_path)
    assert base.python.path == "/usr/bin/python3.11"
    assert base.layers[0].unpacked < 70e6
    with debian.open("rb") as stream:
        found = [item.name for item in members(Hashing(stream, "base"), "base")]
    assert len(found) == len(set(found))
    assert not [
        name for name in found if name.startswith(("usr/share/man/", "usr/share/locale/")) and name.count("/") > 3
    ]
    if bytecode.interpreter(rootfs.MINOR):
        assert "usr/lib/python3.11/asyncio/__pycache__/__init__.cpython-311.pyc" in found


@pytest.mark.mmdebstrap
def test_a_mirror_that_does_not_answer_is_missing(tmp_path, capsys):
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    assert rootfs.main([str(tmp_path / "base.tar"), "--mirror", "http://127.0.0.1:9/debian"]) == 4
    assert "is a Debian mirror reachable?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_mmdebstrap_the_command_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rootfs.main([str(tmp_path / "base.tar")]) == 4
    assert capsys.readouterr().err.startswith("error: mmdebstrap is not installed\n  apt-get install")
