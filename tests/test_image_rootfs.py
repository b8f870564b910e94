"""The base that mmdebstrap makes: the same bytes twice, and a usable Python inside."""

import os
import shutil
import subprocess
import tarfile

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
    assert base.layers[0].unpacked < 45e6
    with debian.open("rb") as stream:
        found = [item.name for item in members(Hashing(stream, "base"), "base")]
    assert len(found) == len(set(found))
    assert not [
        name for name in found if name.startswith(("usr/share/man/", "usr/share/locale/")) and name.count("/") > 3
    ]
    programs = [name for name in found if name.startswith(("bin/", "sbin/", "usr/bin/", "usr/sbin/"))]
    assert programs == ["usr/bin/python3", "usr/bin/python3.11"], "no shell, no package manager"
    if bytecode.interpreter(rootfs.MINOR):
        assert "usr/lib/python3.11/asyncio/__pycache__/__init__.cpython-311.pyc" in found


@pytest.mark.mmdebstrap
def test_the_base_says_what_is_in_it_and_nothing_of_this_machine(debian):
    with tarfile.open(debian) as archive:
        kept = archive.extractfile("./var/lib/dpkg/status.d/libssl3").read().decode()
        assert archive.extractfile("./usr/lib/os-release").read().startswith(b'PRETTY_NAME="Debian')
        assert [archive.getmember(f"./etc/{name}").size for name in ("hostname", "resolv.conf")] == [0, 0]
    assert {"Package: libssl3", "Architecture: amd64"} <= set(kept.splitlines())


@pytest.mark.mmdebstrap
def test_all_of_the_standard_library_that_a_server_may_need_loads(debian, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root for chroot")
    with tarfile.open(debian) as archive:
        archive.extractall(tmp_path, filter="tar")
    code = (
        "import importlib, sys\n"
        "for name in sorted(sys.stdlib_module_names - {'antigravity', 'this'}):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: print(name, error)\n"
    )
    command = ["chroot", str(tmp_path), "/usr/bin/python3.11", "-W", "ignore", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "libsqlite3" not in "".join(told)
    assert not [line for line in told if "No module named" not in line], "a library is missing"
    missing = {line.partition(" ")[0] for line in told}
    assert missing >= {"turtle", "readline", "_sqlite3"}
    assert not missing & {"asyncio", "ssl", "_ssl", "ctypes", "decimal", "lzma", "bz2", "uuid", "zoneinfo", "unittest"}


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
