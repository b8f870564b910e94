"""Models as OCI artifacts: what is written is what the specification asks for, what is read is not trusted."""

import gzip
import io
import json
import lzma
import tarfile

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import modelpack_schema
from image_support import archive_of, onnx_artifact, sha, write_files
from modelpack import canonical, exchange
from modelpack.artifact import Kind
from modelpack.container.bundle import found as finding
from modelpack.container.bundle import media, pack, texts, unpack
from modelpack.container.bundle.place import appearing
from modelpack.errors import StageError, StoreError, UsageError
from modelpack.store import Store

CNCF = "application/vnd.cncf.model"
KIT = "application/vnd.kitops.modelkit"


def sealed(root, *, names=(), **work):
    """Seal an ONNX model, with external data and a file in a directory, in a store of its own."""
    model = onnx_artifact(root / "plain")
    store = Store(root / "store")
    store.prepare()
    asked = {"stage": "export", "version": 1, "config": {}, **work}
    with store.draft() as draft:
        for name in ("model.onnx", "signature.json"):
            (draft.path / name).write_bytes((model.path / name).read_bytes())
        (draft.path / "model.onnx.data").write_bytes(bytes(range(256)))
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "labels.txt").write_text("a\nb\n")
        for name in names:
            (draft.path / name).write_text("its own")
        return store, store.commit(draft, Kind.ONNX, asked, {"metrics": {"accuracy": 0.9}})


def described(store, artifact, **changes):
    about = exchange.describe(store, artifact, "digits", "1.0")
    return texts.Description(**{**about.__dict__, **changes})


def packed(root, scratch="scratch", **changes):
    store, artifact = sealed(root)
    (root / scratch).mkdir()
    return artifact, pack.pack(artifact, described(store, artifact, **changes), root / scratch)


def documents(bundle):
    manifest = json.loads(bundle.manifest.read())
    return manifest, json.loads(bundle.blobs[manifest["config"]["digest"]].read())


def valid(document, schema):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(document)


@pytest.mark.parametrize("epoch", [None, 0, 1_700_000_000])
def test_what_is_written_is_what_the_specification_asks_for(tmp_path, epoch):
    artifact, bundle = packed(tmp_path, epoch=epoch)
    manifest, config = documents(bundle)
    valid(manifest, modelpack_schema.MANIFEST)
    valid(config, modelpack_schema.CONFIG)
    assert ("createdAt" in config["descriptor"]) == (epoch is not None)
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    names = [layer["annotations"][media.PATH] for layer in manifest["layers"]]
    assert names == [
        "model.onnx", "model.onnx.data", "deep/labels.txt", "manifest.json", "signature.json", "Kitfile", "Modelfile",
        "README.md",
    ]  # fmt: skip
    for layer, name in zip(manifest["layers"], names, strict=True):
        metadata = json.loads(layer["annotations"][media.METADATA])
        valid(metadata, modelpack_schema.METADATA)
        assert (metadata["name"], metadata["size"]) == (name.rpartition("/")[2], layer["size"])
        assert layer["annotations"][media.UNTESTED] == "false"
        assert layer["mediaType"].endswith(".raw")
    assert [layer["mediaType"] for layer in manifest["layers"][:3]] == [media.WEIGHTS, media.WEIGHTS, media.SETTINGS]
    assert config["descriptor"]["revision"] == artifact.id
    assert config["config"]["format"] == "onnx"


def test_a_wrong_document_does_not_pass_our_schema(tmp_path):
    manifest, config = documents(packed(tmp_path)[1])
    for wrong in (
        {**config, "more": 1},
        {**config, "modelfs": {"type": "layers", "diff_ids": ["x"]}},
        {**config, "config": {"paramSize": "7 million"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            valid(wrong, modelpack_schema.CONFIG)
    with pytest.raises(jsonschema.ValidationError):
        valid({**manifest, "artifactType": "model"}, modelpack_schema.MANIFEST)


def test_the_same_model_gives_the_same_bytes_everywhere(tmp_path, monkeypatch):
    digests = set()
    for number, (zone, mask) in enumerate((("UTC", 0o022), ("Asia/Tokyo", 0o077))):
        monkeypatch.setenv("TZ", zone)
        import os

        before = os.umask(mask)
        try:
            digests.add(packed(tmp_path / str(number))[1].digest)
        finally:
            os.umask(before)
    assert len(digests) == 1
    assert packed(tmp_path / "dated", epoch=1)[1].digest not in digests


def test_kitfile_and_modelfile_name_every_file_once(tmp_path):
    _, bundle = packed(tmp_path, name='my "model"', parameters=203_530, quantization="static")
    manifest, _ = documents(bundle)
    files = {item["annotations"][media.PATH]: bundle.blobs[item["digest"]].read() for item in manifest["layers"]}
    kit = yaml.safe_load(files["Kitfile"])
    assert set(kit) == {"manifestVersion", "package", "model", "docs"}
    paths = [kit["model"]["path"], *(part["path"] for part in kit["model"]["parts"]), kit["docs"][0]["path"]]
    assert sorted(paths) == sorted(set(files) - {"Kitfile", "Modelfile"})
    assert kit["package"]["version"] == "1.0"
    lines = files["Modelfile"].decode().splitlines()
    assert lines[:2] == ['NAME "my \\"model\\""', "FORMAT onnx"]
    assert {"PARAMSIZE 203.5k", "QUANTIZATION static", "MODEL model.onnx", "DOC README.md"} < set(lines)
    assert [line.split(" ", 1)[1] for line in lines if line.startswith("CONFIG")] == [
        "deep/labels.txt", "manifest.json", "signature.json",
    ]  # fmt: skip
    card = files["README.md"].decode()
    assert "| x | float32 | batch × 4 |" in card
    assert "| parameters | 203,530 |" in card


def test_a_file_of_the_models_own_stands_in_for_what_we_would_write(tmp_path):
    store, artifact = sealed(tmp_path, names=("README.md",))
    manifest, _ = documents(pack.pack(artifact, described(store, artifact), tmp_path))
    (card,) = [item for item in manifest["layers"] if item["annotations"][media.PATH] == "README.md"]
    assert card["digest"] == sha(b"its own")


def test_a_model_that_was_quantized_says_how(tmp_path):
    store, first = sealed(tmp_path / "a", stage="quantize", config={"method": "dynamic"})
    assert described(store, first).quantization == "dynamic"
    with store.draft() as draft:
        (draft.path / "model.onnx").write_bytes((first.path / "model.onnx").read_bytes())
        later = store.commit(
            draft, Kind.ONNX, {"stage": "interface", "version": 1, "config": {}, "model": first.id}, {}
        )
    assert described(store, later).quantization == "dynamic"
    store, plain = sealed(tmp_path / "b")
    about = described(store, plain)
    assert (about.quantization, about.precision, about.parameters) == ("", "float32", 12)


@given(st.integers(min_value=0, max_value=10**17))
def test_a_number_of_parameters_is_written_within_its_rounding(number):
    text = texts.size(number)
    if not text:
        assert number < 100 or number >= 10**18 - 10**14
        return
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "q": 1e15}[text[-1]]
    assert abs(float(text[:-1]) * scale - number) <= 0.051 * scale
    assert float(text[:-1]) < 1000


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
def test_what_is_written_to_a_file_comes_back_under_the_same_id(tmp_path, name):
    artifact, bundle = packed(tmp_path / "one")
    pack.write(bundle, tmp_path / name, "1.0")
    scheme = "oci-archive" if name.endswith(".tar") else "oci"
    found = finding.find(f"{scheme}:{tmp_path / name}", tmp_path / "cache")
    assert found.digest == bundle.digest
    assert finding.find(f"{scheme}:{tmp_path / name}:1.0", tmp_path / "cache") == found.__class__(
        **{**found.__dict__, "where": f"{scheme}:{tmp_path / name}:1.0"}
    )
    store = Store(tmp_path / "other")
    again = exchange.adopt(store, found)
    assert again.id == artifact.id
    assert again.verify() == []
    assert again.metrics == {"accuracy": 0.9}
    assert store.find(again.manifest.fingerprint) is None  # nobody's word is taken for a result
    assert exchange.adopt(store, found).path == again.path
    (tmp_path / "out").mkdir()
    names = unpack.unpack(found, tmp_path / "out", tmp_path)
    assert {"Kitfile", "README.md", "manifest.json", "deep/labels.txt"} < set(names)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (artifact.path / "model.onnx").read_bytes()


def test_a_tag_that_is_not_in_a_layout_is_told_with_those_that_are(tmp_path):
    _, bundle = packed(tmp_path / "one")
    pack.write(bundle, tmp_path / "layout", "1.0")
    with pytest.raises(UsageError, match="no model fits") as caught:
        finding.find(f"oci:{tmp_path / 'layout'}:2.0", tmp_path)
    assert caught.value.then == "it holds: 1.0"


def layout_of(root, layers, *, config=None, kind=media.CONFIG, **manifest):
    """Write an OCI layout of layers: media type, bytes, annotations; gives what names it."""
    text = canonical.encode(config if config is not None else {})
    body = canonical.encode(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "config": {"mediaType": kind, "digest": sha(text), "size": len(text)},
            "layers": [
                {"mediaType": form, "digest": sha(data), "size": len(data), "annotations": notes}
                for form, data, notes in layers
            ],
            **manifest,
        }
    )
    blobs = {f"blobs/sha256/{sha(data)[7:]}": data for data in (text, body, *(data for _, data, _ in layers))}
    index = {"schemaVersion": 2, "manifests": [{"digest": sha(body), "size": len(body)}]}
    write_files(root, {"oci-layout": b"{}", "index.json": json.dumps(index).encode(), **blobs})
    return f"oci:{root}"


def tar(*members, mode="w:") -> bytes:
    """Write a tar: a name with bytes, or a TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for item in members:
            if isinstance(item, tarfile.TarInfo):
                archive.addfile(item)
            else:
                info = tarfile.TarInfo(item[0])
                info.size = len(item[1])
                archive.addfile(info, io.BytesIO(item[1]))
    return buffer.getvalue()


def special(name, kind, target="") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(place, tmp_path) -> dict[str, bytes]:
    output = tmp_path / "out"
    with appearing(output) as draft:
        names = unpack.unpack(finding.find(place, tmp_path / "cache"), draft, tmp_path)
    assert names == sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return {name: (output / name).read_bytes() for name in names}


def file(name) -> dict[str, str]:
    return {media.PATH: name}


def test_what_modctl_writes_is_read(tmp_path):
    layers = [
        (f"{CNCF}.weight.v1.tar", tar(("model.safetensors", b"weights")), file("model.safetensors")),
        (f"{CNCF}.weight.config.v1.raw", b"{}", file("config.json")),
        (f"{CNCF}.doc.v1.tar", tar(special("docs", tarfile.DIRTYPE), ("docs/a.md", b"# a")), file("docs/a.md")),
    ]
    config = {"modelfs": {"type": "layers", "diffIds": [sha(data) for _, data, _ in layers]}}
    files = read(layout_of(tmp_path / "l", layers, config=config, artifactType=media.ARTIFACT), tmp_path)
    assert files == {"model.safetensors": b"weights", "config.json": b"{}", "docs/a.md": b"# a"}


@pytest.mark.parametrize("key", ["diffIds", "diff_ids"])
@pytest.mark.parametrize("promised", ["inside", "outside"])
def test_layers_that_are_compressed_are_read(tmp_path, key, promised):
    inside = tar(("a/model.onnx", b"weights"))
    data = gzip.compress(inside, mtime=0)
    digest = sha(inside) if promised == "inside" else sha(data)
    place = layout_of(tmp_path / "l", [(f"{CNCF}.weight.v1.tar+gzip", data, {})], config={"modelfs": {key: [digest]}})
    assert read(place, tmp_path) == {"a/model.onnx": b"weights"}


@pytest.mark.parametrize("key", ["diffIds", "diff_ids"])
def test_a_layer_that_unpacks_to_something_else_is_refused(tmp_path, key):
    data = gzip.compress(tar(("model.onnx", b"weights")), mtime=0)
    config = {"modelfs": {key: [sha(b"other")]}}
    for kind, content in ((f"{CNCF}.weight.v1.tar+gzip", data), (f"{CNCF}.weight.v1.raw", b"weights")):
        place = layout_of(tmp_path / kind[-4:], [(kind, content, file("x"))], config=config)
        with pytest.raises(StageError, match=r"unpacks to|has the digest"):
            read(place, tmp_path)


def test_what_came_before_the_cncf_is_read(tmp_path):
    layers = [("application/vnd.cnai.model.weight.v1.raw", b"weights", {"org.cnai.model.filepath": "model.gguf"})]
    place = layout_of(tmp_path / "l", layers, kind="application/vnd.cnai.model.config.v1+json")
    assert read(place, tmp_path) == {"model.gguf": b"weights"}


def test_a_modelkit_of_kitops_is_read_with_its_kitfile(tmp_path):
    data = tar(("model.onnx", b"weights"))
    zipped = gzip.compress(tar(("src/run.py", b"pass")), mtime=0)
    kitfile = {
        "manifestVersion": "1.0.0",
        "package": {"name": "mine", "version": "1.10"},
        "model": {"path": "model.onnx", "parameters": {"digest": 1}, "digest": sha(data), "diffId": sha(data)},
        "code": [{"path": "src", "digest": sha(zipped)}],
    }
    layers = [(f"{KIT}.model.v1.tar", data, {}), (f"{KIT}.code.v1.tar+gzip", zipped, {})]
    files = read(layout_of(tmp_path / "l", layers, config=kitfile, kind=media.KIT), tmp_path)
    assert set(files) == {"model.onnx", "src/run.py", "Kitfile"}
    assert yaml.safe_load(files["Kitfile"]) == {
        **kitfile,
        "model": {"path": "model.onnx", "parameters": {"digest": 1}},
        "code": [{"path": "src"}],
    }


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "", ".", "a\\b", "a\nb", "a\0b", "x" * 2000],
)
def test_a_name_that_leads_outside_is_refused(tmp_path, name):
    place = layout_of(tmp_path / "l", [(media.WEIGHTS, b"weights", file(name))])
    with pytest.raises(StageError, match=r"leads outside|names no file"):
        read(place, tmp_path)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../x", b""), "leads outside"),
        (("a/../../x", b""), "leads outside"),
        (("/etc/x", b""), "absolute"),
        (special("x", tarfile.SYMTYPE, "/etc/passwd"), "symlink"),
        (special("x", tarfile.LNKTYPE, "y"), "link"),
        (special("x", tarfile.FIFOTYPE), "no plain file"),
        (special("x", tarfile.CHRTYPE), "no plain file"),
    ],
)
@pytest.mark.parametrize("packer", [bytes, lambda data: gzip.compress(data, mtime=0)])
def test_a_tar_that_leads_outside_is_refused(tmp_path, member, reason, packer):
    data = packer(tar(("first", b"1"), member))
    place = layout_of(tmp_path / "l", [(f"{CNCF}.weight.v1.tar", data, {})])
    with pytest.raises(StageError, match=reason):
        read(place, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("layer-")) == ["l"]


def test_two_files_of_one_name_are_refused(tmp_path):
    for number, names in enumerate((("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"))):
        layers = [(media.WEIGHTS, name.encode() + bytes([index]), file(name)) for index, name in enumerate(names)]
        with pytest.raises(StageError, match="two files want the name"):
            read(layout_of(tmp_path / str(number), layers), tmp_path)


def test_a_small_layer_that_becomes_huge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_SPARED", 1 << 16)
    data = gzip.compress(tar(("x", bytes(1 << 24))), mtime=0)
    place = layout_of(tmp_path / "l", [(f"{CNCF}.weight.v1.tar+gzip", data, {})])
    with pytest.raises(StageError, match="unpacks to more than"):
        read(place, tmp_path)


@pytest.mark.parametrize("where", range(3))
def test_a_flipped_byte_is_found_wherever_it_is(tmp_path, where):
    data = gzip.compress(tar(("x", b"weights")), mtime=0)
    layers = [(media.WEIGHTS, b"weights", file("a")), (f"{CNCF}.weight.v1.tar+gzip", data, {})]
    place = layout_of(tmp_path / "l", layers, config={"descriptor": {}})
    blob = sorted((tmp_path / "l" / "blobs" / "sha256").iterdir())[where]
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(StageError):
        read(place, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([("application/octet-stream", b"x", {})], "unknown kind"),
        ([(f"{CNCF}.weight.v1.raw+gzip", b"x", {})], "unknown kind"),
        ([(media.WEIGHTS, b"x", {})], "names no file"),
        ([(f"{CNCF}.weight.v1.tar", b"no tar at all" * 100, {})], "not a tar archive"),
        ([(f"{CNCF}.weight.v1.tar+zstd", b"\x28\xb5\x2f\xfd" + bytes(20), {})], "compressed with zstd"),
        ([(f"{CNCF}.weight.v1.tar", lzma.compress(b"x"), {})], "compressed with xz"),
        ([(f"{CNCF}.weight.v1.tar+gzip", b"\x1f\x8b" + bytes(20), {})], "damaged"),
    ],
)
def test_a_layer_that_cannot_be_right_is_told(tmp_path, layers, reason):
    with pytest.raises(StageError, match=reason):
        read(layout_of(tmp_path / "l", layers), tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("application/vnd.oci.image.config.v1+json", "container image"),
        ("application/vnd.docker.container.image.v1+json", "container image"),
        ("application/vnd.docker.ai.model.config.v0.1+json", "no model that modelpack can read"),
    ],
)
def test_what_is_no_model_is_told(tmp_path, kind, reason):
    with pytest.raises(UsageError, match=reason):
        finding.find(layout_of(tmp_path / "l", [], kind=kind), tmp_path)


def test_archives_are_read_and_damaged_ones_told(tmp_path):
    layout_of(tmp_path / "l", [(media.WEIGHTS, b"weights", file("a"))])
    files = {path.relative_to(tmp_path / "l").as_posix(): path.read_bytes() for path in (tmp_path / "l").rglob("*") if path.is_file()}  # fmt: skip
    (tmp_path / "l.tar").write_bytes(archive_of(files))
    assert read(f"oci-archive:{tmp_path / 'l.tar'}", tmp_path) == {"a": b"weights"}
    (tmp_path / "none.tar").write_bytes(archive_of({"oci-layout": b"{}"}))
    with pytest.raises(StageError, match=r"has no 'index\.json'"):
        finding.find(f"oci-archive:{tmp_path / 'none.tar'}", tmp_path)


def changed(bundle, tmp_path, change):
    """Write a bundle as somebody would who changed one of its files, with all digests made right again."""
    manifest, config = documents(bundle)
    layers = []
    for item in manifest["layers"]:
        name = item["annotations"][media.PATH]
        data = change(name, bundle.blobs[item["digest"]].read())
        if data is not None:
            layers.append((item["mediaType"], data, item["annotations"]))
    config.pop("modelfs")
    return finding.find(layout_of(tmp_path / "evil", layers, config=config), tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda name, data: data + b"?" if name == "model.onnx" else data, StageError, "not the one"),
        (lambda name, data: None if name == "model.onnx.data" else data, StageError, "not the one"),
        (lambda name, data: data.replace(b"0.9", b"0.8"), StageError, "not what modelpack writes"),
        (lambda name, data: b"[" * 100_000 if name == "manifest.json" else data, StageError, "not what modelpack"),
        (lambda name, data: b"{}" if name == "manifest.json" else data, StageError, "not what modelpack writes"),
        (lambda name, data: None if name == "manifest.json" else data, UsageError, "did not come out of a store"),
    ],
)
def test_a_model_that_somebody_changed_does_not_enter_the_store(tmp_path, change, error, reason):
    _, bundle = packed(tmp_path / "one")
    found = changed(bundle, tmp_path, change)
    with pytest.raises(error, match=reason):
        exchange.adopt(Store(tmp_path / "store"), found)
    assert Store(tmp_path / "store").artifacts() == []


def test_a_manifest_of_something_else_does_not_enter_the_store(tmp_path):
    store = Store(tmp_path / "s")
    store.prepare()
    for number, (kind, work) in enumerate(
        [
            (Kind.REPORT, {"stage": "bench", "version": 1, "config": {}}),
            (Kind.ONNX, {"version": 1, "config": {}}),
            (Kind.ONNX, {"stage": "export", "version": 1, "config": {}, "model": 7}),
            (Kind.ONNX, {"stage": "export", "version": 1, "config": {}, "steps": {"a": []}}),
        ]
    ):
        with store.draft() as draft:
            (draft.path / "x").write_text("x")
            truth = store.commit(draft, kind, work, {}).path / "manifest.json"
        layers = [(media.SETTINGS, b"x", file("x")), (media.SETTINGS, truth.read_bytes(), file("manifest.json"))]
        found = finding.find(layout_of(tmp_path / str(number), layers), tmp_path)
        with pytest.raises(StageError, match="describes no model"):
            exchange.adopt(Store(tmp_path / "mine"), found)


def test_a_place_that_is_taken_is_not_written_to(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("full", "full/x", "link"):
        with pytest.raises(UsageError, match="not empty"), appearing(tmp_path / name):
            raise AssertionError
    with pytest.raises(UsageError, match="not empty"), appearing(tmp_path / "full", is_file=True):
        raise AssertionError
    with pytest.raises(KeyError), appearing(tmp_path / "new") as draft:
        raise KeyError((draft / "half").write_text("half"))
    with pytest.raises(StageError, match="cannot write"), appearing(tmp_path / "full" / "x" / "new"):
        raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "link"]


def test_a_store_in_use_is_told(tmp_path):
    _, bundle = packed(tmp_path / "one")
    pack.write(bundle, tmp_path / "l", "1")
    found = finding.find(f"oci:{tmp_path / 'l'}", tmp_path)
    store = Store(tmp_path / "store")
    with store.locked(exclusive=True), pytest.raises(StoreError, match="being cleaned"):
        exchange.adopt(store, found)
