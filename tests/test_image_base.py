"""Bases: named in six ways, read wherever they lie, refused when something is not as promised."""

import gzip
import json

import pytest

from image_support import ELF, PYTHON, archive_of, image_files, sha, tar_of, write_files, zipped
from modelpack import canonical
from modelpack.container.base import open_base
from modelpack.container.reference import BaseRef, ImageName
from modelpack.errors import MissingError, StageError, UsageError

LAYERS = [tar_of({"etc/os-release": (0o644, b"x")}), tar_of(PYTHON)]


def opened(ref, tmp_path, platform="linux/amd64"):
    return open_base(BaseRef.parse(ref), platform, cache=tmp_path / "cache", scratch=tmp_path)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
        ("me/app", "docker.io/me/app:latest"),
        ("localhost/app:1", "localhost/app:1"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        ("ghcr.io/x/y@sha256:" + "0" * 64, "ghcr.io/x/y@sha256:" + "0" * 64),
        ("x:1@sha256:" + "a" * 64, "docker.io/library/x:1@sha256:" + "a" * 64),
    ],
)
def test_registry_references_are_written_out(text, full):
    assert str(ImageName.parse(text)) == full


@pytest.mark.parametrize("text", ["", "UPPER", "a:b:c", "a@sha256:12", "x:", "a//b", "-a", "a b", "http://x/y", "x:/y"])
def test_what_is_no_registry_reference_is_refused(text):
    with pytest.raises(UsageError, match="no image reference"):
        ImageName.parse(text)


def test_only_this_machine_is_spoken_to_without_tls():
    loopback = ("localhost:5000/a", "127.0.0.1:5000/a", "127.8.8.8/a", "[::1]:5000/a", "localhost/a")
    assert all(ImageName.parse(text).loopback for text in loopback)
    assert not any(ImageName.parse(text).loopback for text in ("a", "10.0.0.1:5000/a", "localhost.evil.com/a"))


def test_places_of_bases(tmp_path):
    (tmp_path / "base.tar").touch()
    ref = BaseRef.parse("rootfs:base.tar", tmp_path)
    assert (ref.scheme, ref.path, ref.label, ref.pinned) == ("rootfs", tmp_path / "base.tar", "rootfs:base.tar", True)
    assert BaseRef.parse("python:3.11-slim") == BaseRef.parse("docker://python:3.11-slim")
    assert not BaseRef.parse("python:3.11-slim").pinned
    assert BaseRef.parse(f"python@sha256:{'0' * 64}").pinned
    assert BaseRef.parse("docker-daemon:mine:1").name == "mine:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rootfs:none.tar", "no such file"),
        ("oci:file", "names a directory"),
        ("oci-archive:folder", "names a file"),
        ("rootfs:", "no such file|names a file"),
        ("docker-daemon:", "names no image"),
        ("ftp://x", "no image reference"),
        ("file", "'file' is a file here: say which kind, such as oci-archive:file"),
    ],
)
def test_wrong_places_are_refused_with_the_reason(tmp_path, text, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=reason):
        BaseRef.parse(text, tmp_path)


def test_a_file_base_is_known_by_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.tar").write_bytes(b"same")
    one, two = (BaseRef.parse("rootfs:base.tar", tmp_path / name) for name in ("a", "b"))
    assert canonical.digest(one) == canonical.digest(two)
    (tmp_path / "b" / "base.tar").write_bytes(b"other")
    assert canonical.digest(one) != canonical.digest(two)


@pytest.fixture(params=["oci", "oci-archive", "docker-archive", "rootfs"])
def everywhere(request, tmp_path):
    files = image_files(LAYERS, compress=zipped if request.param == "oci" else None)
    if request.param == "oci":
        return f"oci:{write_files(tmp_path / 'layout', files)}"
    path = tmp_path / "image.tar"
    path.write_bytes(tar_of(PYTHON) if request.param == "rootfs" else archive_of(files))
    return f"{request.param}:{path}"


def test_the_same_base_is_found_wherever_it_lies(everywhere, tmp_path):
    base = opened(everywhere, tmp_path)
    assert base.python.path == "/usr/bin/python3.11"
    assert base.platform == "linux/amd64"
    assert base.layers[-1].diff_id == sha(LAYERS[-1])
    assert b"".join(base.layers[-1].blob.tar_chunks()) == LAYERS[-1]


def test_another_platform_is_refused(everywhere, tmp_path):
    with pytest.raises(
        (StageError, UsageError), match=r"amd64, not linux/arm64|amd64, not arm64|no image for linux/arm64|built for"
    ):
        opened(everywhere, tmp_path, "linux/arm64")


def test_one_of_several_images_is_chosen_by_its_tag(tmp_path):
    files = image_files(LAYERS)
    index = json.loads(files["index.json"])
    index["manifests"] = [*index["manifests"], {**index["manifests"][0], "annotations": {}}]
    files["index.json"] = json.dumps(index).encode()
    folder = write_files(tmp_path / "layout", files)
    with pytest.raises(UsageError, match="2 images fit"):
        opened(f"oci:{folder}", tmp_path)
    assert opened(f"oci:{folder}:one", tmp_path).python.minor == 11
    (tmp_path / "a.tar").write_bytes(archive_of(image_files(LAYERS)))
    assert opened(f"docker-archive:{tmp_path / 'a.tar'}:tiny:one", tmp_path).python.minor == 11


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_a_changed_layer_is_noticed(kind, tmp_path):
    files = image_files(LAYERS)
    name = f"blobs/sha256/{sha(LAYERS[0])[7:]}"
    changed = tar_of({"etc/os-release": (0o644, b"y")})
    assert len(changed) == len(files[name])
    files[name] = changed
    where = write_files(tmp_path / "layout", files) if kind == "oci" else tmp_path / "image.tar"
    if kind != "oci":
        where.write_bytes(archive_of(files))
    with pytest.raises(StageError, match=r"damaged|not the one its configuration names"):
        opened(f"{kind}:{where}", tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"Env": "PATH=/"}}, "malformed: Env"),
        ({"config": {"OnBuild": ["RUN evil"]}}, "ONBUILD"),
        ({"rootfs": {"diff_ids": []}}, "count the layers"),
        ({"architecture": "s390x"}, "linux/s390x, not linux/amd64"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_refused(change, reason, tmp_path):
    files = image_files(LAYERS)
    (docker,) = json.loads(files["manifest.json"])
    files["config"] = json.dumps({**json.loads(files[docker["Config"]]), **change}).encode()
    files["manifest.json"] = json.dumps([{**docker, "Config": "config"}]).encode()
    (tmp_path / "a.tar").write_bytes(archive_of(files))
    with pytest.raises(StageError, match=reason):
        opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path)


def test_a_layer_that_docker_saved_as_a_link_is_followed(tmp_path):
    files = {name: (0o644, data) for name, data in image_files([LAYERS[1], LAYERS[1]]).items()}
    (docker,) = json.loads(files["manifest.json"][1])
    docker["Layers"] = ["one/layer.tar", "two/layer.tar"]
    linked = {
        **files,
        "manifest.json": (0o644, json.dumps([docker]).encode()),
        "one/layer.tar": (0o644, LAYERS[1]),
        "two/layer.tar": "../one/layer.tar",
    }
    (tmp_path / "a.tar").write_bytes(tar_of(linked))
    assert len(opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path).layers) == 2
    (tmp_path / "a.tar").write_bytes(tar_of({**linked, "two/layer.tar": "../../../etc/passwd"}))
    with pytest.raises(StageError, match=r"has no 'two/layer.tar'"):
        opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path)


def test_an_index_inside_an_index_is_followed_and_a_loop_is_not(tmp_path):
    files = image_files(LAYERS)
    inner = files["index.json"]
    files[f"blobs/sha256/{sha(inner)[7:]}"] = inner
    files["index.json"] = json.dumps({"manifests": [{"digest": sha(inner), "size": len(inner)}]}).encode()
    assert opened(f"oci:{write_files(tmp_path / 'layout', files)}", tmp_path).python.minor == 11
    deep = inner
    for _ in range(5):
        deep = json.dumps({"manifests": [{"digest": sha(deep), "size": len(deep)}]}).encode()
        files[f"blobs/sha256/{sha(deep)[7:]}"] = deep
    files["index.json"] = deep
    with pytest.raises(StageError, match="not an image manifest"):
        opened(f"oci:{write_files(tmp_path / 'layout', files)}", tmp_path)


def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(archive_of(image_files(LAYERS))))
    with pytest.raises(StageError, match="compressed with gzip") as caught:
        opened(f"docker-archive:{tmp_path / 'a.tar.gz'}", tmp_path)
    assert caught.value.then == "decompress it first"


@pytest.mark.parametrize("content", [b"[]", b"{}", b"nonsense", b"[1]", b'[{"Config":"none"}]', b"[" * 100_000])
def test_a_malformed_docker_archive_is_refused(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(archive_of({"manifest.json": content}))
    with pytest.raises((StageError, UsageError), match=r"malformed|0 images fit|has no"):
        opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path)


@pytest.mark.parametrize(
    "index",
    [b"[]", b"{}", b'{"manifests":1}', b'{"manifests":[{"digest":"../../etc/passwd","size":1}]}', b'{"layers":[]}'],
)
def test_a_malformed_layout_is_refused(index, tmp_path):
    folder = write_files(tmp_path / "layout", {"index.json": index})
    with pytest.raises((StageError, UsageError)):
        opened(f"oci:{folder}", tmp_path)


def test_a_compressed_rootfs_is_read_and_an_unknown_compression_named(tmp_path):
    (tmp_path / "base.tar.gz").write_bytes(gzip.compress(tar_of(PYTHON)))
    assert opened(f"rootfs:{tmp_path / 'base.tar.gz'}", tmp_path).layers[0].diff_id == sha(tar_of(PYTHON))
    (tmp_path / "base.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(StageError, match="zstd"):
        opened(f"rootfs:{tmp_path / 'base.tar.zst'}", tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(tar_of(PYTHON))[:-20])
    with pytest.raises(StageError, match="damaged"):
        opened(f"rootfs:{tmp_path / 'cut.gz'}", tmp_path)


def test_the_environment_of_the_base_decides_which_python_is_first(tmp_path):
    other = {name.replace("usr/", "opt/py/"): what for name, what in PYTHON.items()}
    files = image_files([tar_of(PYTHON), tar_of(other)], env=["PATH=/opt/py/bin:/usr/bin"])
    (tmp_path / "a.tar").write_bytes(archive_of(files))
    assert opened(f"docker-archive:{tmp_path / 'a.tar'}", tmp_path).python.path == "/opt/py/bin/python3.11"


def test_a_base_for_arm_is_read_on_any_machine(tmp_path):
    arm = {**PYTHON, "usr/bin/python3.11": (0o755, ELF[:18] + b"\xb7\x00" + ELF[20:])}
    (tmp_path / "arm.tar").write_bytes(tar_of(arm))
    assert opened(f"rootfs:{tmp_path / 'arm.tar'}", tmp_path, "linux/arm64").platform == "linux/arm64"


def test_a_file_that_vanishes_is_missing(tmp_path):
    path = tmp_path / "base.tar"
    path.write_bytes(tar_of(PYTHON))
    ref = BaseRef.parse(f"rootfs:{path}")
    path.unlink()
    with pytest.raises(MissingError, match="cannot be read"):
        open_base(ref, "linux/amd64", cache=tmp_path, scratch=tmp_path)
