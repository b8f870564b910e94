"""Blobs on their way: what breaks is taken up again, what is there is not sent, and nothing half-sent counts."""

import hashlib
import json
import re
import threading

import pytest

from image_support import (
    PYTHON,
    archive_of,
    image_files,
    little_wheels,
    onnx_artifact,
    registry,
    rootfs,
    sha,
    tar_of,
    zipped,
)
from modelpack.container import download, patience, upload
from modelpack.container import registry as registries
from modelpack.container.blob import Blob
from modelpack.container.http import Registry
from modelpack.container.patience import BrokenError
from modelpack.container.reference import ImageName
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.stages.build import build
from registries import line, small
from support import run_stage

__all__ = ["line", "little_wheels", "registry", "rootfs", "small"]

DATA = bytes(range(256)) * 40


def blob_of(tmp_path, data=DATA) -> Blob:
    """Put bytes into the middle of a file."""
    path = tmp_path / "file"
    path.write_bytes(b"before" + data + b"after")
    return Blob(path, len(data), 6, sha(data))


def send(host, blob, source="") -> int:
    with Registry(ImageName.parse(f"{host}/a/b:1"), upload.scopes(ImageName.parse(f"{host}/a/b"), source)) as there:
        return upload.upload(there, blob, source)


def held(state) -> bytes:
    return state["answers"][f"/v2/a/b/blobs/{sha(DATA)}"][1]


def fetch(host, cache, data=DATA) -> Blob:
    with Registry(ImageName.parse(f"{host}/a/b:1")) as there:
        there.send("HEAD", "blobs/x", allow=(404,))
        return download.download(there, {"digest": sha(data), "size": len(data)}, cache)


def offer(state, data=DATA):
    state["answers"][f"/v2/a/b/blobs/{sha(data)}"] = (200, data)


def test_a_blob_goes_in_chunks_and_is_not_sent_again(small, tmp_path, monkeypatch):
    state, host = small
    monkeypatch.setattr(upload, "CHUNK", 4000)
    assert send(host, blob_of(tmp_path)) == len(DATA)
    assert held(state) == DATA
    assert state["bodies"] == [4000, 4000, 2240]
    assert send(host, blob_of(tmp_path)) == 0
    assert state["bodies"] == [4000, 4000, 2240]


@pytest.mark.parametrize("cuts", [[], [4000, 1500], [100, 100]])
def test_every_byte_is_told_of_once(small, tmp_path, monkeypatch, cuts):
    state, host = small
    monkeypatch.setattr(upload, "CHUNK", 4000)
    for action in (upload.upload, lambda there, _: download.download(there, {"digest": sha(DATA), "size": len(DATA)}, tmp_path)):  # fmt: skip
        told = []
        state["cuts"] = list(cuts)
        for _ in range(2):
            with Registry(ImageName.parse(f"{host}/a/b:1"), moved=told.append) as there:
                there.send("HEAD", "blobs/x", allow=(404,))
                action(there, blob_of(tmp_path))
        assert sum(told) == 2 * len(DATA)
        assert min(told) >= 0


def test_a_small_blob_goes_in_one_piece(small, tmp_path):
    state, host = small
    assert send(host, blob_of(tmp_path)) == len(DATA)
    assert state["bodies"] == [len(DATA)]
    assert [verb for verb, _ in state["seen"]] == ["HEAD", "POST", "PUT"]


@pytest.mark.parametrize("cuts", [[1], [0], [2500], [4000, 1500], [4000, 4000, 7], [3, 3, 3, 3, 3, 3, 3]])
def test_an_upload_goes_on_where_the_connection_broke(small, tmp_path, monkeypatch, cuts):
    state, host = small
    monkeypatch.setattr(upload, "CHUNK", 4000)
    state["cuts"] = list(cuts)
    assert send(host, blob_of(tmp_path)) == len(DATA)
    assert held(state) == DATA
    # nothing that arrived was sent again, but for a lone byte: registries cannot say that they have one
    partial = sum(cut for cut in cuts if cut < 4000)
    assert sum(state["bodies"]) in {len(DATA) - partial, len(DATA)}


def test_an_upload_that_the_registry_forgot_begins_anew(small, tmp_path, monkeypatch):
    state, host = small
    monkeypatch.setattr(upload, "CHUNK", 4000)
    state |= {"cuts": [4000, 1500], "keeps": False}
    assert send(host, blob_of(tmp_path)) == len(DATA)
    assert held(state) == DATA
    assert sum(verb == "POST" for verb, _ in state["seen"]) == 2


def test_an_upload_that_breaks_without_end_is_given_up(small, tmp_path):
    state, host = small
    state |= {"cuts": [0] * 100}
    with pytest.raises(BrokenError, match="connection to the registry broke") as caught:
        send(host, blob_of(tmp_path))
    assert caught.value.exit_code == 4
    assert len(state["cuts"]) == 95


def test_bytes_that_the_registry_finds_wrong_are_not_sent_without_end(small, tmp_path):
    state, host = small
    state["busy"] = [(404, {}), (202, {"Location": "/v2/a/b/blobs/uploads/1"}), (400, {})]
    with pytest.raises(MissingError, match=r"answers 400 to PUT .*BUSY: later"):
        send(host, blob_of(tmp_path))
    assert len(state["seen"]) == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(small, tmp_path, status):
    state, host = small
    state["busy"] = [(status, {"Retry-After": "0"})] * 3
    assert send(host, blob_of(tmp_path)) == len(DATA)
    assert held(state) == DATA


def test_a_registry_that_stays_busy_is_given_up_and_quoted(small, tmp_path):
    state, host = small
    state["busy"] = [(503, {})] * 50
    with pytest.raises(MissingError, match=r"answers 503 to HEAD"):
        send(host, blob_of(tmp_path))
    assert len(state["seen"]) == len(patience.PAUSES) + 1


def test_an_hour_is_not_waited(small, tmp_path):
    state, host = small
    state["busy"] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(MissingError) as caught:
        send(host, blob_of(tmp_path))
    assert caught.value.then == "try again in 3600 seconds"


def test_a_damaged_blob_is_not_sent(small, tmp_path):
    state, host = small
    blob = blob_of(tmp_path)
    blob.path.write_bytes(b"other" * 3000)
    with pytest.raises(StageError, match="damaged"):
        send(host, blob)
    assert [verb for verb, _ in state["seen"]] == ["HEAD"]


def test_a_blob_is_mounted_where_it_can_be(small, tmp_path):
    state, host = small
    state["mountable"] = ("c/d",)
    assert send(host, blob_of(tmp_path), "c/d") == 0
    assert state["seen"][-1] == ("POST", f"/v2/a/b/blobs/uploads/?mount={sha(DATA)}&from=c/d")
    assert send(host, blob_of(tmp_path), "elsewhere") == len(DATA)
    assert [verb for verb, _ in state["seen"][2:]] == ["HEAD", "POST", "PUT"]


def test_a_registry_that_does_not_let_us_mount_gets_the_blob(small, tmp_path):
    state, host = small
    state["busy"] = [(404, {}), (403, {})]
    assert send(host, blob_of(tmp_path), "c/d") == len(DATA)
    assert [verb for verb, _ in state["seen"]] == ["HEAD", "POST", "POST", "PUT"]


def test_a_repository_that_must_be_made_first_is_told(small, tmp_path):
    state, host = small
    state["busy"] = [(404, {}), (404, {})]
    with pytest.raises(UsageError, match="no such place") as caught:
        send(host, blob_of(tmp_path))
    assert "create the repository" in caught.value.then


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cuts", [[0], [100], [5000, 5000], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_a_download_goes_on_where_the_connection_broke(small, tmp_path, ranges, cuts):
    state, host = small
    offer(state)
    state |= {"cuts": list(cuts), "ranges": ranges}
    blob = fetch(host, tmp_path)
    assert blob.read() == DATA
    asked = [item.get("Range") for item in state["headers"][1:]]
    sums = [f"bytes={sum(cuts[: index + 1])}-" for index in range(len(cuts))]
    if ranges:
        assert asked == [None, *(text if text != "bytes=0-" else None for text in sums)]
    assert list(tmp_path.rglob("*.part")) == []


def test_what_a_killed_process_left_is_not_fetched_again(small, tmp_path):
    state, host = small
    offer(state)
    part = download.place(tmp_path, sha(DATA))
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.part").write_bytes(DATA[:9000])
    assert fetch(host, tmp_path).read() == DATA
    assert state["headers"][-1]["Range"] == "bytes=9000-"


@pytest.mark.parametrize("left", [b"other" * 100, DATA[:-1] + b"?", DATA + b"more"])
def test_what_was_left_wrong_is_fetched_anew(small, tmp_path, left):
    state, host = small
    offer(state)
    part = download.place(tmp_path, sha(DATA))
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.part").write_bytes(left)
    assert fetch(host, tmp_path).read() == DATA


def test_bytes_of_another_digest_never_enter_the_cache(small, tmp_path):
    state, host = small
    state["answers"][f"/v2/a/b/blobs/{sha(DATA)}"] = (200, DATA[:-1] + b"?")
    with pytest.raises(StageError, match="other bytes"):
        fetch(host, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "descriptor",
    [
        None,
        {},
        {"digest": "sha256:../../x", "size": 1},
        {"digest": "sha512:" + "0" * 128, "size": 1},
        {"digest": "sha256:" + "0" * 64},
        {"digest": "sha256:" + "0" * 64, "size": -1},
        {"digest": "sha256:" + "0" * 64, "size": True},
        {"digest": "sha256:" + "0" * 64, "size": 1 << 50},
    ],
)
def test_a_descriptor_that_cannot_be_right_is_refused(small, tmp_path, descriptor):
    with Registry(ImageName.parse(f"{small[1]}/a/b:1")) as there, pytest.raises(StageError, match="usable digest"):
        download.download(there, descriptor, tmp_path)
    assert small[0]["seen"] == []


def test_two_that_want_the_same_blob_share_one_download(small, tmp_path):
    state, host = small
    offer(state)
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(host, tmp_path).read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA] * 4
    assert sum(verb == "GET" for verb, _ in state["seen"]) == 1


def requests_of(host, tmp_path) -> list[tuple[str, str]]:
    """Read from Debian's registry's log what was asked of it: verb and path."""
    log = (tmp_path / "registry" / "log").read_text()
    return re.findall(r'"(GET|HEAD|POST|PATCH|PUT) (/v2/\S*) HTTP', log)


def write_image(path, size=0):
    layers = [tar_of(PYTHON), *([tar_of({"big": (0o644, hashlib.shake_128(b"x").digest(size))})] if size else [])]
    files = image_files(layers, compress=zipped)
    path.write_bytes(archive_of(files))
    return json.loads(files["index.json"])["manifests"][0]["digest"]


@pytest.mark.registry
@pytest.mark.parametrize("breaks", [[], [900_000], [400_000, 700_000, 2_000]])
def test_a_push_over_a_line_that_breaks_arrives(registry, line, tmp_path, monkeypatch, breaks):
    monkeypatch.setattr(upload, "CHUNK", 500_000)
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    digest = write_image(tmp_path / "image.tar", 1_500_000)
    between = line(registry)
    between.breaks = [*breaks]
    pushed = registries.push(tmp_path / "image.tar", f"{between.host}/a/b:1")
    assert pushed.endswith(digest)
    assert not between.breaks
    assert registries.pull(f"{registry}/a/b:1", "linux/amd64", tmp_path / "cache").digest == digest


@pytest.mark.registry
def test_nothing_is_served_until_all_of_an_image_is_there(registry, line, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", ())
    write_image(tmp_path / "image.tar", 500_000)
    between = line(registry)
    between.breaks = [300_000]
    with pytest.raises(MissingError):
        registries.push(tmp_path / "image.tar", f"{between.host}/a/b:1")
    with pytest.raises(UsageError, match="no such image"):
        registries.pull(f"{registry}/a/b:1", "linux/amd64", tmp_path / "cache")


@pytest.mark.registry
def test_only_the_models_layer_and_the_configuration_are_sent_when_only_the_model_changed(
    registry, line, tmp_path, rootfs, little_wheels
):
    write_image(tmp_path / "base.tar.oci", 300_000)
    registries.push(tmp_path / "base.tar.oci", f"{registry}/tests/base:1")
    between = line(registry)
    pushes, sent = [], []
    for seed in (0, 1):
        model = onnx_artifact(tmp_path / f"model-{seed}", seed)
        base = f"docker://{between.host}/tests/base:1"
        image = run_stage(tmp_path / f"run-{seed}", build, {"base": base, "tag": "x:1"}, model=model, base=tmp_path)
        before, counted = len(requests_of(registry, tmp_path)), between.sent
        registries.push(image.file("image.tar"), f"{between.host}/tests/model:{seed}")
        pushes.append(requests_of(registry, tmp_path)[before:])
        sent.append(between.sent - counted)
    blobs = [[path for verb, path in push if verb == "PUT" and "/blobs/" in path] for push in pushes]
    mounted = [[path for verb, path in push if "mount=" in path and verb == "POST"] for push in pushes]
    assert len(blobs[0]) == 4  # wheels, server, model, configuration
    assert len(mounted[0]) == 6
    assert all("from=tests/base" in path for path in mounted[0])
    assert len(blobs[1]) == 2  # model, configuration
    assert [verb for verb, path in pushes[1] if verb == "PUT" and "/manifests/" in path] == ["PUT"]
    assert sent[1] < 12_000
