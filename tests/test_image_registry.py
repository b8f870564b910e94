"""Registries: a small one that lies on request, and Debian's."""

import json

import pytest

from image_support import PYTHON, archive_of, image_files, registry, tar_of, zipped
from modelpack.container import registry as registries
from modelpack.container.base import open_base
from modelpack.container.reference import BaseRef
from modelpack.errors import MissingError, StageError, UsageError
from registries import publish, small

__all__ = ["registry", "small"]


def base_of(host, tmp_path, *, offline=False, tag=":1", platform="linux/amd64"):
    ref = BaseRef.parse(f"docker://{host}/a/b{tag}")
    return open_base(ref, platform, cache=tmp_path / "cache", scratch=tmp_path, offline=offline)


@pytest.mark.parametrize("index", [True, False])
def test_an_image_is_pulled_once_and_then_known_offline(small, tmp_path, index):
    state, host = small
    digest = publish(state, index=index)
    assert base_of(host, tmp_path).digest == digest
    fetched = [path for _, path in state["seen"] if "/blobs/" in path]
    assert len(fetched) == 2
    state["answers"].clear()
    state["seen"].clear()
    assert base_of(host, tmp_path, offline=True).python.path == "/usr/bin/python3.11"
    assert state["seen"] == []
    with pytest.raises(MissingError, match="not in the cache"):
        base_of(host, tmp_path, offline=True, tag=":2")


def test_a_pinned_base_that_is_cached_needs_no_registry(small, tmp_path):
    state, host = small
    digest = publish(state)
    base_of(host, tmp_path, tag=f"@{digest}")
    state["seen"].clear()
    base_of(host, tmp_path, tag=f"@{digest}")
    assert state["seen"] == []


def test_a_platform_that_is_not_offered_is_named_with_what_is(small, tmp_path):
    state, host = small
    publish(state)
    with pytest.raises(UsageError, match="no image for linux/arm64") as caught:
        base_of(host, tmp_path, platform="linux/arm64")
    assert caught.value.then == "it offers: linux/amd64, linux/s390x"


@pytest.mark.parametrize("what", ["blobs", "manifests/sha256"])
@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data + b"more", lambda data: data[:-3]])
def test_bytes_that_differ_from_their_digest_are_refused(small, tmp_path, what, change):
    state, host = small
    publish(state)
    for path, (status, data) in list(state["answers"].items()):
        if what in path:
            state["answers"][path] = (status, change(data))
    with pytest.raises(StageError, match=r"other bytes|with digest"):
        base_of(host, tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name.startswith("tmp")]


def test_a_manifest_without_end_is_cut_off(small, tmp_path):
    state, host = small
    state["answers"]["/v2/a/b/manifests/1"] = (200, b" " * (9 << 20))
    with pytest.raises(StageError, match="more than 8388608 bytes"):
        base_of(host, tmp_path)


def test_what_is_not_there_and_who_does_not_answer(small, tmp_path):
    _, host = small
    with pytest.raises(UsageError, match="no such image"):
        base_of(host, tmp_path, tag=":none")
    with pytest.raises(MissingError, match="does not answer") as caught:
        registries.pull("127.0.0.1:9/a/b:1", "linux/amd64", tmp_path)
    assert "make base" in caught.value.then
    assert caught.value.exit_code == 4


def test_a_proxy_and_a_netrc_file_have_no_say_about_this_machine(small, tmp_path, monkeypatch):
    state, host = small
    publish(state)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert base_of(host, tmp_path).python.minor == 11


def test_other_answers_of_a_registry_are_told(small, tmp_path):
    state, host = small
    for status, reason in ((403, "wants other credentials"), (500, "answers 500")):
        state["answers"]["/v2/a/b/manifests/1"] = (status, b"{}")
        with pytest.raises(MissingError, match=reason):
            base_of(host, tmp_path)
    state["answers"]["/v2/a/b/manifests/1"] = (200, b"<html>")
    with pytest.raises(StageError, match="not JSON"):
        base_of(host, tmp_path)
    state["answers"]["/v2/a/b/manifests/1"] = (200, b'{"config":{"digest":"sha256:x","size":-1}}')
    with pytest.raises(StageError, match="without a usable digest and size"):
        base_of(host, tmp_path)


def test_a_connection_that_breaks_is_told(small, tmp_path):
    state, host = small
    publish(state)
    state["promised"] = 5
    with pytest.raises(MissingError, match="connection to the registry broke"):
        base_of(host, tmp_path)


def write_image(tmp_path):
    files = image_files([tar_of(PYTHON)], compress=zipped)
    path = tmp_path / "image.tar"
    path.write_bytes(archive_of(files))
    return path, json.loads(files["index.json"])["manifests"][0]["digest"]


@pytest.mark.registry
def test_an_image_is_pushed_to_a_real_registry_and_pulled_as_a_base(registry, tmp_path):
    path, digest = write_image(tmp_path)
    assert registries.push(path, f"{registry}/a/b:1") == f"{registry}/a/b:1@{digest}"
    assert registries.push(path, f"{registry}/a/b:1").endswith(digest)
    base = base_of(registry, tmp_path, tag=f":1@{digest}")
    assert (base.digest, base.python.path) == (digest, "/usr/bin/python3.11")


@pytest.mark.registry
def test_a_damaged_archive_is_not_pushed(registry, tmp_path):
    path, _ = write_image(tmp_path)
    data = path.read_bytes()
    layer = zipped(tar_of(PYTHON))
    assert layer in data
    path.write_bytes(data.replace(layer, layer[:-9] + b"?" + layer[-8:]))
    with pytest.raises(StageError, match="damaged"):
        registries.push(path, f"{registry}/a/b:1")
    with pytest.raises(UsageError, match="no such image"):
        registries.pull(f"{registry}/a/b:1", "linux/amd64", tmp_path)
