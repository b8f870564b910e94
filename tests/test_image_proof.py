"""Proof of an image: signed, attached, examined; what was changed by one byte is found."""

import base64
import json
import random

import pytest

from image_support import PYTHON, little_wheels, onnx_artifact, registry, tar_of
from modelpack.container.archive import ARCHIVE
from modelpack.container.deliver import deliver
from modelpack.container.proof import examine, keys, seal, signature
from modelpack.container.reference import BaseRef
from modelpack.stages.build import build
from signing import openssl, pair
from support import run_stage
from test_build import blobs

__all__ = ["little_wheels", "registry"]


@pytest.fixture
def image(tmp_path, little_wheels, monkeypatch):
    """A small image of one platform."""
    sources = tmp_path / "server"  # a server of one line, so that the image is small and the tests are fast
    (sources).mkdir()
    (sources / "__main__.py").write_text("print('served')\n")
    monkeypatch.setattr("modelpack.container.plan.SERVER_SOURCES", sources)
    (tmp_path / "base.tar").write_bytes(tar_of(PYTHON))
    settings = {"base": "rootfs:base.tar", "tag": "reg.example/small:2.0", "platform": "linux/amd64"}
    return run_stage(tmp_path, build, settings, model=onnx_artifact(tmp_path), base=tmp_path)


@pytest.fixture
def signed(image, tmp_path):
    """The image signed: the archive, and the public key's file."""
    private, public = pair(tmp_path)
    output = tmp_path / "signed.tar"
    deliver(image, output, None, print, key=private)
    return output, public


def look(path, public=None, scheme="oci-archive", tag=""):
    key = keys.verifier(public) if public else None
    return examine.examine(BaseRef(scheme, str(path), path, tag), key, path.parent / "cache")


def verdicts(report):
    return {row.check: row.verdict for row in report.rows}


CHECKS = ["archive", "digests", "layers", "provenance", "model", "contents", "signature"]


def test_an_image_as_built_proves_itself_but_for_a_signature(image):
    report = look(image.file(ARCHIVE))
    assert report.digest == image.manifest.record["results"]["image"]["digest"]
    assert verdicts(report) == dict.fromkeys(CHECKS, "ok") | {"signature": "not checked"}
    assert report.ok


def test_a_signed_image_is_checked_against_its_key(signed, tmp_path):
    output, public = signed
    report = look(output, public)
    assert verdicts(report) == dict.fromkeys(CHECKS, "ok")
    assert all("signed" in row.cause for row in report.rows if row.check in ("signature", "provenance", "contents"))
    other = look(output, pair(tmp_path, "other")[1])
    assert verdicts(other) == dict.fromkeys(CHECKS, "ok") | dict.fromkeys(
        ("provenance", "contents", "signature"), "failed"
    )
    assert verdicts(look(output))["signature"] == "not checked"


def test_an_unsigned_image_fails_where_a_signature_is_asked_for(image, tmp_path):
    found = verdicts(look(image.file(ARCHIVE), pair(tmp_path)[1]))
    assert [name for name, verdict in found.items() if verdict == "failed"] == ["provenance", "contents", "signature"]


def test_signing_twice_gives_the_same_bytes_and_leaves_the_image_as_it_is(image, signed, tmp_path):
    output, _ = signed
    again = tmp_path / "again.tar"
    seal.sign(output, again, tmp_path / "signer.key", "reg.example/small:2.0")
    assert again.read_bytes() == output.read_bytes()
    before, after = blobs(image.file(ARCHIVE)), blobs(output)
    assert before["manifest.json"] == after["manifest.json"]
    assert before.keys() < after.keys()


def test_openssl_agrees_with_the_signatures(signed, tmp_path):
    output, public = signed
    files = blobs(output)
    entries = json.loads(files["index.json"])["manifests"][1:]
    seen = set()
    for entry in entries:
        for layer in json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])["layers"]:
            data = files[f"blobs/sha256/{layer['digest'][7:]}"]
            if layer["mediaType"] == signature.SIMPLE:
                made, message = layer["annotations"]["dev.cosignproject.cosign/signature"], data
            elif layer["mediaType"] == signature.ENVELOPE:
                body = json.loads(data)
                kind, payload = body["payloadType"].encode(), base64.b64decode(body["payload"])
                message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
                made = body["signatures"][0]["sig"]
            else:
                continue
            seen.add(layer["mediaType"])
            (tmp_path / "message").write_bytes(message)
            (tmp_path / "made").write_bytes(base64.b64decode(made))
            openssl("dgst", "-sha256", "-verify", public, "-signature", tmp_path / "made", tmp_path / "message")
    assert seen == {signature.SIMPLE, signature.ENVELOPE}


def test_one_changed_byte_anywhere_is_found(signed, tmp_path):
    output, _ = signed
    data, place = output.read_bytes(), tmp_path / "flipped.tar"
    chance = random.Random(7)
    missed = []
    for _ in range(1000):
        at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        changed = bytearray(data)
        changed[at] ^= bit
        place.write_bytes(changed)
        if look(place).ok:
            missed.append((at, bit))
    assert missed == []


@pytest.mark.parametrize(
    "change", [lambda data: data + bytes(512), lambda data: data[:-512], lambda data: b"", lambda data: data[:3000]]
)
def test_a_longer_or_shorter_file_is_found(signed, tmp_path, change):
    place = tmp_path / "changed.tar"
    place.write_bytes(change(signed[0].read_bytes()))
    assert not look(place).ok
