"""Tars from strangers: read like tarfile reads them, refused where they lie."""

import contextlib
import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_support import ELF, PYTHON, tar_of
from modelpack.container import tarball
from modelpack.container.tarball import Hashing, members
from modelpack.container.tree import Tree, python
from modelpack.errors import StageError


def listed(data: bytes, **options):
    return list(members(Hashing(io.BytesIO(data), "test"), "test", **options))


def tree_of(*layers: dict) -> Tree:
    tree = Tree()
    for files in layers:
        tree.add(listed(tar_of(files), heads="python3."))
    return tree


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(form):
    long = "d" * 90 + "/" + "f" * (60 if form == tarfile.USTAR_FORMAT else 160)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo(f"./{long}" if form != tarfile.USTAR_FORMAT else long)
        info.size = 700
        archive.addfile(info, io.BytesIO(bytes(700)))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, long[:99]
        archive.addfile(link)
    found = listed(buffer.getvalue())
    assert [(item.name, item.kind, item.size) for item in found] == [(long, "file", 700), ("link", "symlink", 0)]
    assert buffer.getvalue()[found[0].offset : found[0].offset + 700] == bytes(700)
    assert found[1].target == long[:99]


@pytest.mark.parametrize("name", ["../etc/passwd", "a/../../b", "/../x", ".."])
def test_a_member_that_leads_outside_is_refused(name):
    with pytest.raises(StageError, match="outside"):
        listed(tar_of({name: (0o644, b"")}))


def test_more_bytes_or_members_than_allowed_are_refused(monkeypatch):
    bomb = gzip.compress(tar_of({"zeros": (0o644, bytes(1 << 20))}))
    with pytest.raises(StageError, match="unpacks to more than 4096"):
        list(members(Hashing(gzip.GzipFile(fileobj=io.BytesIO(bomb)), "bomb", 4096), "bomb"))
    monkeypatch.setattr(tarball, "MAX_MEMBERS", 2)
    with pytest.raises(StageError, match="more than 2 members"):
        listed(tar_of({str(number): (0o644, b"") for number in range(3)}))
    assert len(listed(tar_of({str(number): (0o644, b"") for number in range(2)}))) == 2


def test_a_header_record_of_absurd_size_is_refused_before_it_is_read():
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(StageError, match="header record of 8589934592 bytes"):
        listed(info.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize(
    "record", [b"99 path=x\n", b"path=x\n", b"7 path\n", b"9999999999 path=x\n", b"11 size=-1\n", b"11 size=1e9\n"]
)
def test_a_malformed_pax_record_is_refused(record):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    body = record + bytes(-len(record) % 512) + tar_of({"a": (0o644, b"")})
    with pytest.raises(StageError, match=r"pax record|damaged"):
        listed(info.tobuf(tarfile.USTAR_FORMAT) + body)


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_tar_or_an_error(data):
    with contextlib.suppress(StageError):
        listed(data)


@given(st.integers(0, 3 * 512 - 1), st.integers(0, 255))
def test_any_changed_byte_of_a_header_is_harmless(place, value):
    data = bytearray(tar_of({"a/b": (0o644, b"hello"), "c": "a/b"}))
    data[place] = value
    try:
        found = listed(bytes(data))
    except StageError:
        return
    assert all(".." not in item.name.split("/") and not item.name.startswith("/") for item in found)


def test_whiteouts_hide_what_lies_below_and_not_what_comes_with_them():
    below = {"etc/a": (0o644, b""), "etc/b": (0o644, b""), "opt/x/y": (0o644, b"")}
    above = {"etc/.wh.a": (0o644, b""), "opt/x/.wh..wh..opq": (0o644, b""), "opt/x/new": (0o644, b"")}
    assert sorted(tree_of(below, above).nodes) == ["etc/b", "opt/x/new"]
    assert sorted(tree_of(below, {"opt/x": (0o644, b"a file now")}).nodes) == ["etc/a", "etc/b", "opt/x"]
    assert sorted(tree_of(below, {".wh.opt": (0o644, b"")}).nodes) == ["etc/a", "etc/b"]


def test_links_are_followed_in_every_part_of_a_path():
    tree = tree_of(
        {"usr/bin/python3.11": (0o755, ELF), "bin": "usr/bin", "loop": "loop", "usr/up": "../bin/python3.11"}
    )
    assert tree.resolve("/bin/python3.11").name == "usr/bin/python3.11"
    assert tree.resolve("usr/up").name == "usr/bin/python3.11"
    assert tree.resolve("loop") is None
    assert tree.resolve("/bin/none") is None


def test_the_first_python_of_the_path_is_taken():
    local = {name.replace("usr/", "usr/local/"): what for name, what in PYTHON.items()}
    found = python(tree_of(PYTHON, local), "/usr/local/bin:/usr/bin", "base")
    assert (found.path, found.minor, found.architecture) == ("/usr/local/bin/python3.11", 11, "amd64")
    assert python(tree_of(PYTHON, local), "/usr/bin", "base").path == "/usr/bin/python3.11"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"usr/bin/.wh.python3.11": (0o644, b"")}, "no Python 3"),
        ({"usr/bin/python3.11": (0o644, ELF)}, "no Python 3"),
        ({"usr/bin/python3.11": (0o755, b"#!/bin/sh")}, "not an ELF"),
        ({"usr/bin/python3.11": (0o755, ELF[:18] + b"\xf3\x00" + ELF[20:])}, "0xf3"),
        ({"usr/lib/python3.11/.wh.asyncio": (0o644, b"")}, "asyncio"),
        ({"usr/lib/x86_64-linux-gnu/.wh.libstdc++.so.6": (0o644, b"")}, "libstdc"),
        ({"lib/ld-musl-x86_64.so.1": (0o755, b"")}, "musl"),
    ],
)
def test_a_base_without_a_usable_python_is_refused_with_the_reason(change, reason):
    with pytest.raises(StageError, match=reason) as caught:
        python(tree_of(PYTHON, change), "/usr/bin", "my-base")
    assert caught.value.where == "my-base"


def test_an_old_python_is_refused_with_its_version():
    old = {name.replace("3.11", "3.9"): what for name, what in PYTHON.items()}
    with pytest.raises(StageError, match=r"Python 3\.9; .* 3\.11 to 3\.14"):
        python(tree_of(old), "/usr/bin", "base")
