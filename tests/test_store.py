"""The store: what is present is complete, whatever happens while it is written."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack import canonical
from modelpack.artifact import MANIFEST, Artifact, File, Kind, Manifest
from modelpack.errors import StoreError, UsageError
from modelpack.store import Store

WORK = {"stage": "test", "config": {"a": 1}}


def commit(store, content=b"payload", work=WORK, record=None, kind=Kind.TORCH):
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "weights.safetensors").write_bytes(content)
        (draft.path / "sub" / "code.py").write_text("pass\n")
        return store.commit(draft, kind, work, record or {"seconds": 1.5})


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_a_commit_can_be_found_by_its_work_and_its_id(store):
    artifact = commit(store)
    assert store.find(canonical.digest(WORK)) == artifact
    assert store.get(artifact.id[:6]) == artifact
    assert artifact.verify() == []
    assert artifact.model_bytes == len(b"payload")
    assert stat.S_IMODE(artifact.file("weights.safetensors").stat().st_mode) == 0o444
    assert list((store.root / "tmp").iterdir()) == []


def test_what_to_keep_is_asked_when_no_run_can_end_any_more(store):
    kept = commit(store)

    def keep():
        with pytest.raises(StoreError, match="being cleaned"), Store(store.root).locked():
            pass
        return [kept.id]

    assert store.collect(keep) == []


def test_the_id_is_what_was_asked_and_what_came_out_only(store, tmp_path):
    first = commit(store, record={"seconds": 1})
    other = Store(tmp_path / "other")
    other.prepare()
    assert commit(other, record={"seconds": 2}).id == first.id
    assert commit(other, content=b"else").id != first.id
    assert commit(other, work={**WORK, "seed": 1}).id != first.id


def test_the_same_result_committed_twice_keeps_the_first(store):
    first = commit(store, record={"seconds": 1})
    again = commit(store, record={"seconds": 2})
    assert again == first
    assert again.manifest.record["seconds"] == 1


def test_what_is_no_plain_file_cannot_be_committed(store):
    with store.draft() as draft:
        (draft.path / "link").symlink_to("/etc/hostname")
        with pytest.raises(StoreError, match="no plain file"):
            store.commit(draft, Kind.TORCH, WORK, {})
    assert store.artifacts() == []
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "./a", "a//b", MANIFEST])
def test_names_that_leave_the_artifact_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        File(name, 0, "0" * 64)


def test_every_flipped_byte_is_noticed(store):
    artifact = commit(store)
    for name in (MANIFEST, "weights.safetensors", "sub/code.py"):
        path = artifact.path / name
        original = path.read_bytes()
        path.chmod(0o644)
        for position in range(len(original)):
            path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
            if name == MANIFEST:
                with pytest.raises(StoreError):
                    Artifact.load(artifact.path)
            else:
                assert artifact.verify() == [f"{path}: changed"]
        path.write_bytes(original)
    assert artifact.verify() == []


def test_added_missing_and_linked_files_are_named(store):
    artifact = commit(store)
    (artifact.path / "extra").write_text("x")
    (artifact.path / "weights.safetensors").unlink()
    (artifact.path / "weights.safetensors").symlink_to(artifact.path / "extra")
    assert artifact.verify() == [
        f"{artifact.path / 'weights.safetensors'}: missing",
        f"{artifact.path / 'extra'}: not part of the artifact",
    ]


def test_an_edited_history_with_a_corrected_checksum_still_has_another_id(store):
    artifact = commit(store)
    forged = Manifest(artifact.kind, {**WORK, "config": {"a": 2}}, artifact.manifest.files, artifact.manifest.record)
    path = artifact.path / MANIFEST
    path.chmod(0o644)
    path.write_bytes(forged.encode())
    assert "named unlike its id" in Artifact.load(artifact.path).verify()[0]


def test_a_truncated_payload_is_not_handed_out(store):
    artifact = commit(store)
    path = artifact.path / "weights.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"pay")
    with pytest.raises(StoreError, match="another size"):
        store.find(artifact.manifest.fingerprint)


def test_a_damaged_artifact_is_replaced_when_it_is_made_again(store):
    artifact = commit(store)
    path = artifact.path / "weights.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"PAYLOAD")
    assert artifact.verify() != []
    assert commit(store) == artifact
    assert artifact.verify() == []
    assert list((store.root / "tmp").iterdir()) == []


def test_a_cache_entry_that_is_no_text_is_told(store):
    artifact = commit(store)
    entry = store.root / "cache" / artifact.manifest.fingerprint
    entry.write_bytes(b"\xb8" + entry.read_bytes()[1:])
    with pytest.raises(StoreError, match="cache entry is damaged"):
        store.find(artifact.manifest.fingerprint)
    store.collect(lambda: [artifact.id])
    assert not entry.exists()


def test_a_vanished_artifact_is_made_again(store):
    artifact = commit(store)
    subprocess.run(["rm", "-rf", str(artifact.path)], check=True)
    assert store.find(artifact.manifest.fingerprint) is None
    assert commit(store) == artifact


@pytest.mark.parametrize(
    ("change", "match"),
    [(b'{"schema": 2}', "schema 2"), (b"[]", "cannot be read"), (b"\xff", "cannot be read")],
)
def test_a_store_of_another_time_is_not_guessed_at(store, change, match):
    (store.root / "store.json").write_bytes(change)
    with pytest.raises(StoreError, match=match):
        Store(store.root)


def test_a_directory_of_something_else_is_not_taken_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="no modelpack store"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a directory"):
        Store(tmp_path / "file")


def test_prefixes_name_one_artifact_or_none(store):
    commit(store)
    with pytest.raises(UsageError, match="no artifact begins"):
        store.get("000000")
    for bad in ("abc", "xyzxyz", "../../.."):
        with pytest.raises(UsageError, match="no artifact id"):
            store.get(bad)


def test_drafts_of_killed_processes_go_and_those_of_living_ones_stay(store):
    left = store.root / "tmp" / "1-dead"
    left.mkdir()
    (left / "weights").write_bytes(b"x")
    with store.draft() as living:
        for path in (left, living.path):
            os.utime(path, (1, 1))
        with store.draft() as other:
            assert {path.name for path in (store.root / "tmp").iterdir()} == {living.path.name, other.path.name}


def test_collecting_keeps_what_is_named_and_nothing_else(store):
    kept = commit(store)
    dropped = commit(store, work={"stage": "old"})
    (store.root / "tmp" / "left-over").mkdir()
    assert store.collect(lambda: [kept.id], dry_run=True) == [dropped.path]
    assert dropped.path.exists()
    assert store.collect(lambda: [kept.id]) == [dropped.path]
    assert store.artifacts() == [kept.path]
    assert store.find(dropped.manifest.fingerprint) is None
    assert store.find(kept.manifest.fingerprint) == kept
    assert list((store.root / "tmp").iterdir()) == []


def test_collecting_follows_no_link_and_leaves_what_is_not_its_own(store, tmp_path):
    artifact = commit(store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    for name in ("tmp", "scratch", "shared"):
        (store.root / name / "link").symlink_to(tmp_path / "mine")
        (store.root / name / "stray").write_text("")
    (store.root / "cache" / "stray").write_text("")
    artifact.path.rename(tmp_path / "moved")
    artifact.path.symlink_to(tmp_path / "moved")
    assert store.collect(list) == [artifact.path]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"
    assert (tmp_path / "moved" / MANIFEST).exists()
    assert [path for name in ("tmp", "scratch", "shared") for path in (store.root / name).iterdir()] == []
    assert (store.root / "cache" / "stray").exists()
    assert store.artifacts() == []


def test_collecting_waits_for_nobody(store):
    with store.locked(), pytest.raises(StoreError, match="a run is using the store"):
        store.collect(list)
    with store.locked(exclusive=True), pytest.raises(StoreError, match="being cleaned"), store.locked():
        pass
    with store.locked(), store.locked():
        pass


def as_nobody(action):
    """Run in a child without root's rights; gives what the child returned as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            answer = str(action())
        except Exception as error:  # noqa: BLE001 - whatever it was, the parent wants to see it
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return stream.read()


def test_a_store_that_may_not_be_written_or_read_says_so():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        store = Store(root / "store")
        store.prepare()
        artifact = commit(store)
        store.root.joinpath("tmp").chmod(0o555)
        assert as_nobody(store.prepare).startswith("StoreError")
        assert "permission denied" in as_nobody(store.prepare)
        assert as_nobody(lambda: store.find(artifact.manifest.fingerprint).id) == artifact.id
        root.chmod(0o700)
        assert "permission denied" in as_nobody(lambda: Store(root / "store"))
        root.chmod(0o755)


def test_a_full_disk_leaves_no_artifact_and_says_so(store, tmp_path):
    script = f"""
        import resource
        from pathlib import Path
        from modelpack.errors import StoreError
        from modelpack.disk import writing
        from modelpack.store import Store
        import signal, errno
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(Path({str(store.root)!r}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with store.draft() as draft, writing(draft.path):
                (draft.path / "weights.safetensors").write_bytes(b"x" * 5000)
        except StoreError as error:
            print("told:", error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "told:" in done.stdout
    assert "cannot write" in done.stdout
    assert store.artifacts() == []


WRITER = """
    import itertools, sys
    from pathlib import Path
    from modelpack.artifact import Kind
    from modelpack.store import Store
    store = Store(Path(sys.argv[1]))
    print("ready", flush=True)
    for number in itertools.count(int(sys.argv[2])):
        with store.draft() as draft:
            for name in "abc":
                (draft.path / name).write_bytes(str(number).encode() * 2000)
            store.commit(draft, Kind.TORCH, {"number": number}, {})
"""


@pytest.mark.parametrize("delay", [0.002, 0.01, 0.03, 0.06])
def test_killed_at_any_moment_whatever_is_present_is_complete(store, delay):
    for turn in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(store.root), str(turn * 1000)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(delay * (turn + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in store.artifacts():
            assert Artifact.load(path).verify() == []
            assert store.find(Artifact.load(path).manifest.fingerprint).path == path
    store.collect(lambda: [path.name for path in store.artifacts()])
    assert list((store.root / "tmp").iterdir()) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
files = st.lists(
    st.builds(
        File, st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True), st.integers(0, 2**40), st.just("ab" * 32)
    ),
    max_size=3,
).map(lambda items: tuple(sorted(items)))


@given(
    work=st.dictionaries(st.text(), json_values, max_size=3),
    files=files,
    record=st.dictionaries(st.text(), json_values, max_size=3),
)
def test_manifests_round_trip(work, files, record):
    manifest = Manifest(Kind.ONNX, work, files, record)
    again = Manifest.decode(manifest.encode(), "here")
    assert again.encode() == manifest.encode()
    assert again.id == manifest.id


def test_a_manifest_of_another_schema_is_refused():
    body = json.loads(Manifest(Kind.ONNX, {}, ()).encode())
    with pytest.raises(StoreError, match="schema 9"):
        Manifest.decode(canonical.encode({**body, "schema": 9}), "here")
