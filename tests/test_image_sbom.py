"""What is in an image, and how it was made: CycloneDX and in-toto documents, judged by their own schemas."""

import base64
import hashlib
import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from image_support import PYTHON, little_wheels, onnx_artifact, tar_of
from modelpack import canonical, inspection
from modelpack.artifact import Kind
from modelpack.container import build as container
from modelpack.container.proof import provenance, sbom
from modelpack.container.proof.inside import Package, distribution, packages, system
from modelpack.stages.build import BuildConfig
from modelpack.store import Store

__all__ = ["little_wheels"]

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u4
Description: a library
 of many lines

Package: gone
Status: deinstall ok config-files
Version: 1
Architecture: all

Package: base-files
Status: install ok installed
Version: 1:12.4
Architecture: all
"""
DEBIAN = {
    **PYTHON,
    "etc/os-release": (0o644, b'NAME="Debian"\nID=debian\nVERSION_ID="12"\n'),
    "var/lib/dpkg/status": (0o644, STATUS.encode()),
}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.tar"
    path.write_bytes(tar_of(DEBIAN))
    return path


def planted(root):
    """A model with a history: a float model, the quantized one, what each says of its quality, and how fast one is."""
    store = Store(root / "models")
    store.prepare()

    def commit(kind, work, metrics):
        with store.draft() as draft:
            (draft.path / "x").write_text(json.dumps(work))
            return store.commit(draft, kind, {"config": {}, "data": {}, "steps": {}, **work}, {"metrics": metrics})

    built = {"stage": "model", "config": {"factory": {"callable": "net.py:build"}}}
    parent = commit(Kind.TORCH, built, {"parameters": 12})
    small = onnx_artifact(root)
    work = {"stage": "quantize", "config": {}, "model": parent.id, "steps": {}, "data": {"train": "ab" * 32}}
    with store.draft() as draft:
        for name in ("model.onnx", "signature.json"):
            (draft.path / name).write_bytes(small.file(name).read_bytes())
        model = store.commit(draft, Kind.ONNX, work, {"metrics": {"agreement": 0.99}, "recipe": "name: small\n"})
    judged = {"stage": "evaluate", "model": model.id, "data": {"val": "cd" * 32}}
    commit(Kind.REPORT, judged, {"accuracy": 0.9375, "note": "fine"})
    commit(Kind.REPORT, {"stage": "bench", "model": model.id, "machine": {"cores": 2}}, {"latency_ms": 0.5})
    commit(Kind.REPORT, {"stage": "evaluate", "model": parent.id, "data": {"val": "cd" * 32}}, {"accuracy": 0.5})
    return store, parent, model


def documents(root, model, past, **settings):
    """Build an image; give its digest, its list of ingredients and its provenance."""
    from test_build import blobs

    config = BuildConfig.model_validate(
        {"base": "rootfs:base.tar", "platform": "linux/amd64", **settings}, context={"base": root}
    )
    out = root / f"out{len(list(root.glob('out*')))}"
    (out / "scratch").mkdir(parents=True)
    facts = {"precision": "int8", "parameters": 12}
    made = container.make(model, config.order("small"), facts, past=past, out=out, scratch=out / "scratch", tell=print)
    files = blobs(out / "image.tar")
    found = {}
    for entry in json.loads(files["index.json"])["manifests"]:
        if "artifactType" in entry:
            manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])
            assert manifest["subject"]["digest"] == made["digest"]
            assert manifest["artifactType"] == entry["artifactType"]
            found[entry["artifactType"]] = files[f"blobs/sha256/{manifest['layers'][0]['digest'][7:]}"]
    return made["digest"], found[sbom.TYPE], found[provenance.TYPE]


def valid(text: bytes) -> dict:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    return json.loads(text)


def test_the_list_is_valid_and_names_everything(tmp_path, base, little_wheels):
    store, _, model = planted(tmp_path)
    digest, text, _ = documents(tmp_path, model, inspection.past(store, model), tag="reg.example/small:2.0")
    bom = valid(text)
    image = bom["metadata"]["component"]
    assert (image["type"], image["name"], image["version"]) == ("container", "reg.example/small", "2.0")
    assert image["hashes"] == [{"alg": "SHA-256", "content": digest[7:]}]
    assert PackageURL.from_string(image["purl"]).version == digest
    by_name = {item["name"]: item for item in bom["components"]}
    assert set(by_name) == {"rootfs:base.tar", "small", "alpha", "beta", "libc6", "base-files"}
    purl = PackageURL.from_string(by_name["base-files"]["purl"])
    assert (purl.type, purl.namespace, purl.version) == ("deb", "debian", "1:12.4")
    assert purl.qualifiers == {"arch": "all", "distro": "debian-12"}
    locked = {
        item["name"]: next(iter(item["files"].values())) for item in json.loads((tmp_path / "wheels.json").read_text())
    }
    assert by_name["alpha"]["hashes"][0]["content"] == locked["alpha"]
    assert PackageURL.from_string(by_name["alpha"]["purl"]).to_string() == "pkg:pypi/alpha@1.0"
    needs = {item["ref"]: item["dependsOn"] for item in bom["dependencies"]}
    assert set(needs) == {item["bom-ref"] for item in [image, *bom["components"]]}
    assert by_name["libc6"]["bom-ref"] in needs[by_name["rootfs:base.tar"]["bom-ref"]]


def test_the_model_has_a_card_and_ancestors(tmp_path, base, little_wheels):
    store, parent, model = planted(tmp_path)
    _, text, _ = documents(tmp_path, model, inspection.past(store, model))
    (found,) = (item for item in valid(text)["components"] if item["type"] == "machine-learning-model")
    assert found["version"] == model.id
    card = found["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "net.py:build"
    assert card["modelParameters"]["inputs"] == [{"format": "x: float32[batch, 4]"}]
    assert card["modelParameters"]["outputs"] == [{"format": "scores: float32[batch, 3]"}]
    assert {item["name"] for item in card["modelParameters"]["datasets"]} == {"train", "val"}
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "accuracy", "value": "0.9375", "slice": "val"}
    ]
    assert [(item["name"], item["version"]) for item in found["pedigree"]["ancestors"]] == [("model", parent.id)]
    weights = hashlib.sha256(model.file("model.onnx").read_bytes()).hexdigest()
    assert found["hashes"] == [{"alg": "SHA-256", "content": weights}]


def test_the_provenance_holds_what_the_models_id_is_the_hash_of(tmp_path, base, little_wheels):
    store, parent, model = planted(tmp_path)
    digest, _, text = documents(tmp_path, model, inspection.past(store, model), labels={"a.b": "c"})
    statement = json.loads(text)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "small:latest", "digest": {"sha256": digest[7:]}}]
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == {"sha256": hashlib.sha256(b"name: small\n").hexdigest()}
    assert definition["externalParameters"]["image"]["labels"] == {"a.b": "c"}
    needed = {item["name"]: item for item in definition["resolvedDependencies"]}
    assert needed["rootfs:base.tar"]["digest"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert needed["ancestor"]["digest"]["sha256"] == parent.id
    assert hashlib.sha256(base64.b64decode(needed["model"]["content"])).hexdigest() == model.id
    identity, files = provenance.model_files(definition["resolvedDependencies"])
    assert (identity, set(files)) == (model.id, {"model.onnx", "signature.json"})
    assert str(tmp_path) not in text.decode()
    needed["model"]["content"] = base64.b64encode(b"{}").decode()
    with pytest.raises(ValueError, match="not what its id is the hash of"):
        provenance.model_files([needed["model"]])


def test_both_are_the_same_bytes_twice_and_dated_only_when_the_image_is(tmp_path, base, little_wheels):
    store, _, model = planted(tmp_path)
    past = inspection.past(store, model)
    first, second = (documents(tmp_path, model, past) for _ in range(2))
    assert first == second
    assert "timestamp" not in json.loads(first[1])["metadata"]
    dated = valid(documents(tmp_path, model, past, epoch=86400)[1])
    assert dated["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"
    assert dated["serialNumber"] != json.loads(first[1])["serialNumber"]


def test_what_dpkg_and_distributions_say_is_read():
    assert list(packages(STATUS)) == [
        Package("libc6", "2.36-9+deb12u4", "amd64"),
        Package("base-files", "1:12.4", "all"),
    ]
    assert list(packages("garbage\n\n\n:")) == []
    assert system('PRETTY="x"\nVERSION_ID=3\nID="alpine"\n') == "alpine-3"
    assert system("") == ""


@pytest.mark.parametrize(
    ("lines", "licence", "written"),
    [
        ("License-Expression: MIT OR Apache-2.0\n", "MIT OR Apache-2.0", {"expression": "MIT OR Apache-2.0"}),
        (
            "License-Expression: MPL-2.0 AND (MIT OR 0BSD)\n",
            "MPL-2.0 AND (MIT OR 0BSD)",
            {"expression": "MPL-2.0 AND (MIT OR 0BSD)"},
        ),
        ("License: BSD\n", "BSD", {"license": {"name": "BSD"}}),
        (
            "License: x\nClassifier: License :: OSI Approved :: MIT License\n",
            "MIT License",
            {"license": {"name": "MIT License"}},
        ),
        ("License: a\n b\n", "", None),
    ],
)
def test_licences_are_told_as_the_distribution_tells_them(lines, licence, written):
    found = distribution(f"Metadata-Version: 2.4\nName: Some_Thing.x\nVersion: 1\n{lines}\n".encode())
    assert (found.name, found.licence) == ("some-thing-x", licence)
    if written:
        assert sbom._licence(licence) == written


def test_an_artifacts_id_is_the_hash_of_what_its_identity_says(tmp_path):
    model = onnx_artifact(tmp_path)
    assert hashlib.sha256(model.manifest.identity).hexdigest() == model.id
    assert json.loads(model.manifest.identity)["work"] == canonical.plain(model.manifest.work)
