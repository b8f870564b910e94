"""One image for several machines: which, on what base each, and an index with all of them."""

import json
import struct
import tarfile
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from image_support import ELF, PYTHON, little_wheels, onnx_artifact, registry, tar_of
from modelpack.container import bytecode, install, wheels
from modelpack.container import registry as registries
from modelpack.container.base import open_base
from modelpack.container.platforms import KNOWN, Bases, Platforms
from modelpack.container.reference import BaseRef
from modelpack.container.tree import MACHINES
from modelpack.errors import MissingError, UsageError
from modelpack.stages.build import BuildConfig, build
from support import run_stage

__all__ = ["little_wheels", "registry"]
BOTH = "linux/amd64,linux/arm64"
ARM = {name: what for name, what in PYTHON.items() if "python3.11" not in name.rpartition("/")[2]} | {
    "usr/bin/python3.11": (0o755, ELF[:18] + struct.pack("<H", 0xB7) + ELF[20:])
}


@pytest.fixture
def rooms(tmp_path):
    """A base for each platform; gives the text that names them."""
    (tmp_path / "amd64.tar").write_bytes(tar_of(PYTHON))
    (tmp_path / "arm64.tar").write_bytes(tar_of(ARM))
    return "linux/amd64=rootfs:amd64.tar, linux/arm64=rootfs:arm64.tar"


def config(tmp_path, **settings) -> BuildConfig:
    return BuildConfig.model_validate(settings, context={"base": tmp_path})


@given(st.permutations(KNOWN), st.integers(1, 2), st.booleans())
def test_platforms_are_a_set_however_they_are_written(names, count, spaced):
    chosen = [*names[:count], names[0]]
    read = Platforms.read((", " if spaced else ",").join(chosen))
    assert read.names == tuple(sorted(set(chosen)))
    assert Platforms.read(str(read)) == read


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"platform": "linux/amd46"}, "did you mean 'linux/amd64'"),
        ({"platform": "linux/amd64,"}, "'' is no platform"),
        ({"platform": BOTH, "base": "rootfs:amd64.tar"}, "linux/amd64=rootfs:FILE,linux/arm64=rootfs:FILE"),
        ({"platform": BOTH, "base": "linux/amd64=rootfs:amd64.tar"}, "no base for linux/arm64"),
        ({"platform": "linux/amd64", "base": "linux/arm64=rootfs:arm64.tar"}, "for no platform of this image"),
        ({"base": "linux/amd64=rootfs:amd64.tar,rootfs:arm64.tar"}, "'rootfs:arm64.tar' has no platform"),
        ({"base": "linux/amd64=rootfs:amd64.tar,linux/amd64=rootfs:amd64.tar"}, "two bases"),
        ({"base": "linux/s390=python:3.11"}, "no platform that the server's wheels exist for"),
        ({"base": "linux/amd64=rootfs:none.tar"}, "no such file"),
        ({"platform": BOTH, "builder": "docker"}, "one platform: use builder: oci"),
    ],
)
def test_wrong_platforms_and_bases_are_refused(tmp_path, rooms, settings, reason):
    with pytest.raises(ValidationError, match=reason):
        config(tmp_path, **settings)


def test_one_base_is_for_all_and_several_are_each_for_one(tmp_path, rooms):
    one, several = Bases.read("python:3.11", tmp_path), Bases.read(rooms, tmp_path)
    assert {one.of(name) for name in KNOWN} == {BaseRef("docker", "python:3.11")}
    assert [several.of(name).path for name in KNOWN] == [tmp_path / "amd64.tar", tmp_path / "arm64.tar"]
    assert (one.pinned, several.pinned) == (False, True)
    assert Bases.read(str(several), tmp_path) == several
    with pytest.raises(UsageError, match="no base for linux/arm64"):
        Bases.read("linux/amd64=python:3.11", tmp_path).of("linux/arm64")
    config(tmp_path, platform=BOTH, base="python:3.11")


@pytest.fixture
def image(tmp_path, rooms, little_wheels):
    return run_stage(
        tmp_path,
        build,
        {"base": rooms, "platform": BOTH, "tag": "both:1"},
        model=onnx_artifact(tmp_path),
        base=tmp_path,
    )


def blobs(archive) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}


def document(files, digest):
    return json.loads(files[f"blobs/sha256/{digest.removeprefix('sha256:')}"])


def test_one_index_has_the_image_of_each_platform(image, tmp_path):
    files = blobs(image.file("image.tar"))
    top, *_ = json.loads(files["index.json"])["manifests"]
    index = document(files, top["digest"])
    assert top["mediaType"] == index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert top["annotations"]["org.opencontainers.image.ref.name"] == "1"
    assert [item["platform"] for item in index["manifests"]] == [
        {"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64"}
    ]  # fmt: skip
    known = image.manifest.record["results"]["image"]
    assert (known["digest"], known["platform"]) == (top["digest"], BOTH)
    for item, told, name in zip(index["manifests"], known["images"], ("amd64", "arm64"), strict=True):
        manifest = document(files, item["digest"])
        settings = document(files, manifest["config"]["digest"])
        assert settings["architecture"] == name
        assert (told["digest"], told["id"]) == (item["digest"], manifest["config"]["digest"])
        assert told["base"]["name"] == f"rootfs:{name}.tar"
        assert settings["config"]["Labels"]["org.opencontainers.image.base.name"] == f"rootfs:{name}.tar"
        base = open_base(
            BaseRef.parse(f"oci-archive:{image.file('image.tar')}"), f"linux/{name}", cache=tmp_path, scratch=tmp_path
        )
        assert (base.digest, base.python.architecture) == (item["digest"], name)


def test_what_is_the_same_for_both_is_stored_once(image):
    amd, arm = image.manifest.record["results"]["image"]["images"]
    same = [
        one["name"] for one, two in zip(amd["layers"], arm["layers"], strict=True) if one["digest"] == two["digest"]
    ]
    assert same == ["wheels", "server", "model"], "plain Python and its byte code are the same for every processor"


@pytest.mark.parametrize(("here", "taken"), [("linux/arm64", "arm64"), ("linux/amd64", "amd64")])
def test_docker_load_gets_this_machines_image(tmp_path, rooms, little_wheels, monkeypatch, here, taken):
    monkeypatch.setattr("modelpack.container.archive.host_platform", lambda: here)
    made = run_stage(tmp_path, build, {"base": rooms, "platform": BOTH}, model=onnx_artifact(tmp_path), base=tmp_path)
    files = blobs(made.file("image.tar"))
    (docker,) = json.loads(files["manifest.json"])
    assert json.loads(files[docker["Config"]])["architecture"] == taken
    with tarfile.open(fileobj=BytesIO(files[docker["Layers"][-1]])) as layer:
        assert "opt/modelpack/model/model.onnx" in layer.getnames()
    assert made.read_json("image.json")["id"] == f"sha256:{docker['Config'].rpartition('/')[2]}"


@pytest.mark.registry
def test_the_index_is_pushed_with_all_that_it_names(image, registry, tmp_path):
    target = f"{registry}/both/model:1"
    pushed = registries.push(image.file("image.tar"), target)
    assert pushed.endswith(image.manifest.record["results"]["image"]["digest"])
    for name in ("amd64", "arm64"):
        base = open_base(BaseRef.parse(f"docker://{target}"), f"linux/{name}", cache=tmp_path / name, scratch=tmp_path)
        assert base.python.architecture == name


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_every_library_in_an_image_is_for_its_processor(architecture):
    """With the real wheels, of everything an image may have; skips where they are neither cached nor to be had."""
    try:
        files = wheels.resolve(wheels.Target(11, architecture), wheels.cache_directory(), {"image", "text", "grpc"})
    except MissingError as error:
        pytest.skip(f"no wheels: {error}")
    machines = {}
    for entry in install.entries(files, "site"):
        head = next(iter(entry.chunks()), b"")[:20]
        if head[:4] == b"\x7fELF":
            machines[entry.name] = MACHINES.get(struct.unpack("<H", head[18:20])[0])
    assert len(machines) > 30
    assert {name for name, machine in machines.items() if machine != architecture} == set()


def test_byte_code_does_not_depend_on_the_processor():
    """Of a file that both platforms' wheels bring alike, as most of numpy."""
    found = {}
    for architecture in ("amd64", "arm64"):
        try:
            files = wheels.resolve(wheels.Target(11, architecture), wheels.cache_directory())
        except MissingError as error:
            pytest.skip(f"no wheels: {error}")
        sources = [entry for entry in install.entries(files, "site") if entry.name.startswith("site/numpy/_core/")]
        program = bytecode.interpreter(11)
        if program is None:
            pytest.skip("needs python3.11")
        alike = {entry.name: b"".join(entry.chunks()) for entry in sources if entry.name.endswith(".py")}
        made = {entry.name: b"".join(entry.chunks()) for entry in bytecode.compiled(sources, 11, program)}
        found[architecture] = alike, made
    (amd_sources, amd), (arm_sources, arm) = found.values()
    assert len(amd) > 20
    assert amd_sources == arm_sources
    assert amd == arm
