from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from modelpack.errors import StageError
from modelpack.sources.npz import npz
from sources import opened, problems, read


def test_reads_every_array_renamed(tmp_path):
    x, y = np.random.default_rng(0).random((5, 1, 2, 2), np.float32), np.arange(5)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    got = read(npz, tmp_path, {"path": "a.npz", "rename": {"x": "image", "y": "label"}, "batch": 2})
    assert set(got) == {"image", "label"}
    np.testing.assert_array_equal(got["image"], x)
    np.testing.assert_array_equal(got["label"], y)


def test_reads_an_npy_under_its_name_from_disk(tmp_path):
    x = np.asfortranarray(np.arange(12, dtype=">i4").reshape(4, 3))
    np.save(tmp_path / "a.npy", x)
    source = opened(npz, tmp_path, {"path": "a.npy", "name": "x"})
    assert len(source) == 4
    np.testing.assert_array_equal(next(iter(source.batches()))["x"], x)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path: a.npy", "a .npy file needs `name`"),
        ("path: a.npz\nname: x", "use `rename`"),
        ("path: a.npz\nrename: {pixel: image}", "2:9 the file has no array 'pixel': did you mean 'pixels'?"),
        ("path: a.npz\nrename: {pixels: y}", "2:9 two arrays would be named 'y'"),
        ("path: a.npz\nmemory: 1e-9", "take 0.0 GiB, more than `memory: 1e-09`"),
        ("path: broken.npz", "1:7"),
        ("path: other.npz", "holds 'note.txt', which is not an array"),
        ("path: twice.npz", "two arrays of one name"),
        ("path: note.txt", "neither .npz nor .npy"),
        ("path: nowhere.npz", "1:7 no such file"),
        ("path: folder", "1:7"),
    ],
)
def test_bad_settings_have_a_place(tmp_path, text, expected):
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "a.npz", pixels=np.zeros(3), y=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("note.txt", "hello")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("x.npy", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", "2")
    found = problems(npz, tmp_path, text)
    assert len(found) == 1
    assert expected in found[0]


def test_how_much_memory_is_allowed_changes_no_digest(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    digests = {opened(npz, tmp_path, {"path": "a.npz", "memory": size}).digest() for size in (1, 2)}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_pickled_objects_are_refused(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code ran",))

    array = np.array([Bomb()], dtype=object)
    if name == "a.npz":
        np.savez(tmp_path / name, x=array)
        settings = {"path": name}
    else:
        np.save(tmp_path / name, array)
        settings = {"path": name, "name": "x"}
    with pytest.raises(StageError, match=r"a\.np.*(object|Array can't be memory-mapped)"):
        read(npz, tmp_path, settings)


def test_an_array_that_claims_more_than_is_there_is_refused_before_reading(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
    with pytest.raises(StageError, match=r"'x': it claims the shape \[10000000000000\]"):
        read(npz, tmp_path, {"path": "a.npz"})


def test_a_bomb_is_refused_from_the_directory_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(20 * 2**20))
    assert (tmp_path / "a.npz").stat().st_size < 2**16
    assert "take 0.0 GiB, more than `memory: 0.01`" in problems(npz, tmp_path, "path: a.npz\nmemory: 0.01")[0]


def test_flipped_bytes_are_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(StageError, match=r"a\.npz: it cannot be read"):
        read(npz, tmp_path, {"path": "a.npz"})


def test_different_numbers_of_rows_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(4))
    with pytest.raises(StageError, match="different numbers of rows: 'x' 3, 'y' 4"):
        read(npz, tmp_path, {"path": "a.npz"})
