"""Files in a directory: what a user wrote or edited stays, what is no longer made goes."""

import json
from pathlib import Path

import pytest

from modelpack.deploy import output
from modelpack.errors import StageError, UsageError


def test_files_are_written_once(tmp_path):
    (tmp_path / "model").write_bytes(b"\x00model")
    files = {"a.yaml": "a: 1\n", "deep/er/b": "b", "model.onnx": tmp_path / "model"}
    first = output.write(files, tmp_path / "out", "t")
    assert first.wrote == ["a.yaml", "deep/er/b", "model.onnx"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"\x00model"
    again = output.write(files, tmp_path / "out", "t")
    assert (again.wrote, again.unchanged) == ([], first.wrote)
    changed = output.write({**files, "a.yaml": "a: 2\n"}, tmp_path / "out", "t")
    assert changed.wrote == ["a.yaml"]
    assert not list((tmp_path / "out").glob(".*.[0-9]*"))


def test_what_is_not_ours_stays_until_forced(tmp_path):
    (tmp_path / "mine").write_text("my own")
    with pytest.raises(UsageError, match="mine is there and not as modelpack wrote it") as caught:
        output.write({"mine": "theirs", "other": "x"}, tmp_path, "t")
    assert "--force" in caught.value.then
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "mine").read_text() == "my own"
    output.write({"mine": "theirs"}, tmp_path, "t", force=True)
    assert (tmp_path / "mine").read_text() == "theirs"


def test_an_edit_counts_as_the_users(tmp_path):
    output.write({"a": "1", "b": "1"}, tmp_path, "t")
    (tmp_path / "a").write_text("edited")
    with pytest.raises(UsageError, match="a is there"):
        output.write({"a": "2", "b": "2"}, tmp_path, "t")
    assert (tmp_path / "b").read_text() == "1"
    (tmp_path / "a").write_text("2")  # as it would be written: nobody loses anything
    assert output.write({"a": "2", "b": "2"}, tmp_path, "t").unchanged == ["a"]


def test_what_is_no_longer_made_goes_unless_it_was_edited(tmp_path):
    output.write({"a": "1", "b": "1", "c": "1"}, tmp_path, "t")
    output.write({"z": "1"}, tmp_path, "other")
    (tmp_path / "b").write_text("edited")
    assert output.write({"c": "1"}, tmp_path, "t").removed == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.RECORD, "b", "c", "z"]


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_file_is_not_written_through(tmp_path, kind):
    (tmp_path / "elsewhere").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    if kind == "link":
        (out / "a").symlink_to(tmp_path / "elsewhere")
    else:
        (out / "a").mkdir()
    with pytest.raises(UsageError, match="a is there"):
        output.write({"a": "x"}, out, "t")
    if kind == "link":
        output.write({"a": "x"}, out, "t", force=True)
        assert not (out / "a").is_symlink()
    else:
        with pytest.raises(StageError, match="cannot write"):
            output.write({"a": "x"}, out, "t", force=True)
    assert (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "targets": {"t": {"../x": "0"}}}',
                                  '{"schema": 2, "targets": {}}', '{"schema": 1, "targets": []}'])  # fmt: skip
def test_a_record_that_cannot_be_read_is_told(tmp_path, text):
    (tmp_path / output.RECORD).write_text(text)
    with pytest.raises(UsageError, match="record of what was written here") as caught:
        output.write({"a": "x"}, tmp_path, "t")
    assert caught.value.where.endswith(output.RECORD)


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a directory is expected"):
        output.write({"a": "x"}, tmp_path / "file", "t")
    with pytest.raises(UsageError, match="a directory is expected"):
        output.write({"file/a": "x"}, tmp_path, "t")
    with pytest.raises(UsageError, match="cannot read"):
        output.write({"n" * 300: "x"}, tmp_path, "t")
    with pytest.raises(StageError, match="cannot write"):
        output.write({"a": "x"}, Path("/proc/nothing"), "t")


def test_the_record_is_the_same_for_the_same_files(tmp_path):
    output.write({"a": "1", "b": "2"}, tmp_path / "one", "t")
    output.write({"b": "2", "a": "1"}, tmp_path / "two", "t")
    one, two = ((tmp_path / name / output.RECORD).read_bytes() for name in ("one", "two"))
    assert one == two
    assert set(json.loads(one)["targets"]["t"]) == {"a", "b"}
