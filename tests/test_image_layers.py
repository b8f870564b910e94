"""Layers: the same bytes for the same files, readable by everybody's tar."""

import gzip
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.container import packed
from modelpack.container.layers import Entry, Layer, chunks, directories, layer

part = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=60).filter(
    lambda text: text not in (".", "..")
)
names = st.lists(part, min_size=1, max_size=6).map("/".join)


def read(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {item.name: item for item in archive}


@given(st.dictionaries(names, st.binary(max_size=700), max_size=6))
def test_any_files_come_back_from_tarfile(files):
    folders = set(directories(files))
    files = {name: data for name, data in files.items() if name not in folders}
    data = b"".join(chunks([Entry(name, content) for name, content in sorted(files.items())], 7))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}
    assert found == files
    members = read(data).values()
    assert {(item.uid, item.gid, item.mtime, item.uname) for item in members} <= {(0, 0, 7, "")}


def test_directories_come_before_what_they_hold():
    data = b"".join(chunks([Entry("opt/a/b.py", b"1"), Entry("opt/c", b"2", 0o755)]))
    assert [(item.name, item.isdir(), oct(item.mode)) for item in read(data).values()] == [
        ("opt", True, "0o755"),
        ("opt/a", True, "0o755"),
        ("opt/a/b.py", False, "0o644"),
        ("opt/c", False, "0o755"),
    ]


def test_order_of_the_entries_does_not_matter(tmp_path):
    one, two = Entry("a", b"1"), Entry("b/c", b"2")
    assert layer("x", [one, two]) == layer("x", [two, one])
    with pytest.raises(ValueError, match="sorted"):
        Layer("x", (two, one))
    with pytest.raises(ValueError, match="once"):
        layer("x", [one, one])


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b", "", "a//b", "./a", "a\0b"])
def test_a_name_that_could_lead_elsewhere_is_no_entry(name):
    with pytest.raises(ValueError, match="POSIX"):
        Entry(name, b"")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")

    class Shrinking(type(Entry("a", b""))):
        @property
        def size(self):
            return 9

    with pytest.raises(OSError, match="changed"):
        b"".join(chunks([Shrinking("a", path)]))


def test_compressed_bytes_carry_no_time_and_no_name(tmp_path):
    entries = [Entry("a", b"x" * 10_000)]
    first = packed.pack(lambda: chunks(entries), tmp_path / "first")
    second = packed.pack(lambda: chunks(entries), tmp_path / "second")
    assert (first.digest, first.diff_id) == (second.digest, second.diff_id)
    data = first.path.read_bytes()
    assert data[3:8] == bytes(5)
    tar = gzip.decompress(data)
    assert first.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert first.unpacked == len(tar)


def test_a_kept_layer_is_used_again_and_a_damaged_one_is_not(tmp_path):
    entries = [Entry("a", b"x" * 10_000)]
    first = packed.pack(lambda: chunks(entries), tmp_path / "1", tmp_path)
    again = packed.pack(lambda: chunks(entries), tmp_path / "2", tmp_path)
    assert not (tmp_path / "2").exists()
    assert (again.digest, again.diff_id, again.unpacked) == (first.digest, first.diff_id, first.unpacked)
    again.path.write_bytes(b"damaged")
    third = packed.pack(lambda: chunks(entries), tmp_path / "3", tmp_path)
    assert third.digest == first.digest
    assert gzip.decompress(third.path.read_bytes()) == b"".join(chunks(entries))
