"""Proof of an image: signed, attached, examined; what was changed by one byte is found."""

import base64
import io
import json
import random
import sys
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from image_support import PYTHON, little_wheels, onnx_artifact, registry, sha, tar_of, write_files, zipped
from modelpack import canonical
from modelpack.container.archive import ARCHIVE, INDEX, Archive, Attached
from modelpack.container.deliver import deliver
from modelpack.container.layers import Entry, chunks
from modelpack.container.oci import MANIFEST, Image, Stored
from modelpack.container.proof import box, examine, keyed, keys, provenance, referrers, sbom, seal, signature
from modelpack.container.proof import found as finding
from modelpack.container.reference import BaseRef
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.stage import Outside
from modelpack.stages.build import BuildConfig, build
from registries import small
from signing import cosigns, openssl, pair
from support import run_stage
from test_build import blobs
from test_image_platforms import rooms

__all__ = ["little_wheels", "registry", "rooms", "small"]


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
    deliver(image, output, None, print, sign=private)
    return output, public


def look(path, public=None, scheme="oci-archive", tag=""):
    trust = keyed.KeyTrust(keys.verifier(public)) if public else None
    return examine.examine(BaseRef(scheme, str(path), path, tag), trust, path.parent / "cache")


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


def served(url):
    """Ask a registry for a manifest or index."""
    return json.loads(urlopen(Request(url, headers={"Accept": f"{INDEX}, {MANIFEST}"})).read())


@pytest.mark.registry
def test_what_proves_an_image_is_pushed_with_it_and_found_again(image, registry, tmp_path):
    private, public = pair(tmp_path)
    told = []
    for _ in range(2):  # the second time changes nothing
        deliver(image, None, f"{registry}/a/small:2", told.append, sign=private)
    digest = image.manifest.record["results"]["image"]["digest"]
    assert told == [f"pushed {registry}/a/small:2@{digest}", "attached 4 documents to it, signed"] * 2
    for reference in (f"{registry}/a/small:2", f"{registry}/a/small@{digest}"):
        report = examine.examine(
            BaseRef("docker", reference), keyed.KeyTrust(keys.verifier(public)), tmp_path / "cache"
        )
        assert report.digest == digest
        assert verdicts(report) == dict.fromkeys(CHECKS[1:], "ok")
    listed = served(f"http://{registry}/v2/a/small/manifests/sha256-{digest[7:]}")["manifests"]
    assert sorted(item["artifactType"] for item in listed) == sorted(
        [sbom.TYPE, provenance.TYPE, referrers.SIGNATURE, referrers.ATTESTATION]
    )
    for ending in ("sig", "att"):
        manifest = served(f"http://{registry}/v2/a/small/manifests/sha256-{digest[7:]}.{ending}")
        assert manifest["subject"]["digest"] == digest


@pytest.mark.registry
def test_two_signers_keep_each_others_signatures(image, registry, tmp_path):
    keys_of = [pair(tmp_path, name) for name in ("first", "second")]
    for private, _ in keys_of:
        deliver(image, None, f"{registry}/a/small:2", print, sign=private)
    digest = image.manifest.record["results"]["image"]["digest"]
    manifest = served(f"http://{registry}/v2/a/small/manifests/sha256-{digest[7:]}.sig")
    assert len(manifest["layers"]) == 2
    config = json.loads(urlopen(f"http://{registry}/v2/a/small/blobs/{manifest['config']['digest']}").read())
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    for _, public in keys_of:
        ref = BaseRef("docker", f"{registry}/a/small:2")
        assert examine.examine(ref, keyed.KeyTrust(keys.verifier(public)), tmp_path / "cache").ok


@pytest.mark.registry
def test_an_image_that_another_tool_signed_is_checked_too(image, registry, tmp_path):
    """Cosign's tag alone, no referrers."""
    private, public = pair(tmp_path)
    deliver(image, None, f"{registry}/a/small:2", print, sign=private)
    name = f"{registry}/a/small:2"
    index = f"http://{registry}/v2/a/small/manifests/sha256-"
    digest = image.manifest.record["results"]["image"]["digest"]
    listed = served(f"{index}{digest[7:]}")
    signature_of = next(item for item in listed["manifests"] if item["artifactType"] == referrers.SIGNATURE)
    listed["manifests"].remove(signature_of)
    put(f"{index}{digest[7:]}", json.dumps(listed).encode(), listed["mediaType"])
    report = examine.examine(BaseRef("docker", name), keyed.KeyTrust(keys.verifier(public)), tmp_path / "cache")
    assert verdicts(report)["signature"] == "ok"


def test_a_registry_that_lists_documents_itself_is_asked(signed, small, tmp_path):
    output, public = signed
    state, host = small
    files = blobs(output)
    for name, data in files.items():
        if name.startswith("blobs/"):
            for kind in ("blobs", "manifests"):
                state["answers"][f"/v2/a/b/{kind}/sha256:{name.rpartition('/')[2]}"] = (200, data)
    image, *documents = json.loads(files["index.json"])["manifests"]
    state["answers"]["/v2/a/b/manifests/1"] = state["answers"][f"/v2/a/b/manifests/{image['digest']}"]
    listed = json.dumps({"schemaVersion": 2, "manifests": documents}).encode()
    state["answers"][f"/v2/a/b/referrers/{image['digest']}"] = (200, listed)
    report = examine.examine(
        BaseRef("docker", f"{host}/a/b:1"), keyed.KeyTrust(keys.verifier(public)), tmp_path / "cache"
    )
    assert verdicts(report) == dict.fromkeys(CHECKS[1:], "ok")
    assert f"/v2/a/b/manifests/sha256-{image['digest'][7:]}" not in [path for _, path in state["seen"]]
    for odd in (b"{}", b'{"manifests":7}', b'{"manifests":[7,{}]}', b"?"):
        state["answers"][f"/v2/a/b/referrers/{image['digest']}"] = (200, odd)
        assert not examine.examine(BaseRef("docker", f"{host}/a/b:1"), None, tmp_path / "cache").ok


def test_without_the_extra_it_says_what_to_install(signed, monkeypatch):
    _, public = signed
    for name in ("cryptography.hazmat.primitives", "cryptography.hazmat.primitives.serialization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match="signing needs 'cryptography'") as caught:
        keys.verifier(public)
    assert caught.value.then == "pip install 'modelpack[sign]'"


def put(url, data, kind):
    request = Request(url, data, {"Content-Type": kind}, method="PUT")
    assert urlopen(request).status == 201


def test_a_layout_is_examined_too(signed, tmp_path):
    output, public = signed
    root = write_files(tmp_path / "layout", blobs(output))
    report = look(root, public, "oci")
    assert verdicts(report) == dict.fromkeys(CHECKS[1:], "ok")
    (image,) = finding.find(BaseRef("oci", "x", root), tmp_path).archive.images
    layer = image.layers[-1].content.path
    layer.write_bytes(layer.read_bytes()[:-1] + b"?")
    assert verdicts(look(root, public, "oci"))["digests"] == "failed"
    layer.unlink()
    assert verdicts(look(root, public, "oci")) == {"image": "failed"}


def changed(archive, place, edit):
    """Rewrite an archive so that every digest is right again: what only a statement or a signature can notice."""
    found = finding.find(BaseRef("oci-archive", "x", archive), place.parent)
    (image,), attached = found.archive.images, found.archive.attached
    image, attached = edit(image, attached)
    entries = Archive((image,), image.platform, tuple(attached)).entries()
    place.write_bytes(b"".join(chunks(entries)))
    return place


def with_layer(image, content):
    """Put another model layer in, rewriting the configuration and the manifest."""
    tar = b"".join(chunks([Entry("opt/modelpack/model/model.onnx", content)]))
    blob, diff = zipped(tar), sha(tar)
    place = image.layers[0].content.path.parent / "layer.tar.gz"
    place.write_bytes(blob)
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"][-1] = diff
    layers = (*image.layers[:-1], Stored("model", sha(blob), diff, len(blob), len(tar), place))
    manifest = json.loads(image.manifest)
    text = canonical.encode(config)
    manifest["config"] |= {"digest": sha(text), "size": len(text)}
    manifest["layers"][-1] |= {"digest": sha(blob), "size": len(blob)}
    return Image(text, canonical.encode(manifest), layers, image.tag, image.platform)


def test_another_model_under_the_old_documents_is_found(signed, tmp_path):
    output, public = signed
    place = changed(output, tmp_path / "swapped.tar", lambda image, attached: (with_layer(image, b"other"), attached))
    found = verdicts(look(place, public))
    assert [name for name, verdict in found.items() if verdict == "ok"] == ["archive", "digests", "layers"]


def moved(image, attached):
    """Make every document one about the image as it is now, as an attacker without the key would."""
    for item in attached:
        manifest = json.loads(item.manifest)
        manifest["subject"]["digest"] = image.digest
        parts = list(item.blobs)
        for number, layer in enumerate(manifest["layers"], 1):
            if layer["mediaType"] in (sbom.TYPE, provenance.TYPE):
                body = json.loads(parts[number])
                hexadecimal = image.digest[7:]
                if "subject" in body:
                    body["subject"][0]["digest"]["sha256"] = hexadecimal
                else:
                    body["metadata"]["component"]["hashes"][0]["content"] = hexadecimal
                parts[number] = canonical.encode(body)
                layer |= {"digest": sha(parts[number]), "size": len(parts[number])}
        yield Attached(item.kind, canonical.encode(manifest), tuple(parts))


def test_documents_rewritten_for_another_model_fail_at_its_files_and_at_the_key(signed, tmp_path):
    output, public = signed

    def edit(image, attached):
        other = with_layer(image, b"other")
        return other, moved(other, attached)

    place = changed(output, tmp_path / "rewritten.tar", edit)
    report = look(place, public)
    assert verdicts(report)["model"] == "failed"
    assert verdicts(report)["signature"] == "failed"
    assert verdicts(report)["provenance"] == "failed"
    unkeyed = look(place)
    assert verdicts(unkeyed)["provenance"] == "ok"
    assert verdicts(unkeyed)["model"] == "failed"


@pytest.mark.parametrize(("kind", "failed"), [(sbom.TYPE, ["contents"]), (provenance.TYPE, ["provenance", "model"])])
def test_a_document_that_was_taken_away_is_missed(signed, tmp_path, kind, failed):
    def edit(image, attached):
        return image, [item for item in attached if item.kind != kind]

    report = look(changed(signed[0], tmp_path / "less.tar", edit))
    assert [row.check for row in report.rows if row.verdict == "failed"] == failed


def test_a_list_that_leaves_something_out_or_names_what_is_not_there_is_found(signed, tmp_path):
    def edit(image, attached):
        for item in attached:
            if item.kind == sbom.TYPE:
                body = json.loads(item.blobs[1])
                body["components"] = [part for part in body["components"] if part["name"] != "alpha"]
                subject = referrers.Subject(MANIFEST, image.digest, len(image.manifest))
                yield referrers.attach(sbom.TYPE, subject, [referrers.Part(sbom.TYPE, canonical.encode(body), {})])
            else:
                yield item

    place = changed(signed[0], tmp_path / "short.tar", lambda image, attached: (image, list(edit(image, attached))))
    (row,) = (row for row in look(place).rows if row.verdict == "failed")
    assert (row.check, row.cause) == ("contents", "the list and the image differ in: alpha 1.0")


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"null", b'{"subject":7}', b"\xff", b'{"components":[7],"metadata":[]}']
)
@pytest.mark.parametrize("kind", [sbom.TYPE, provenance.TYPE, signature.ENVELOPE, signature.SIMPLE])
def test_documents_of_any_shape_fail_without_breaking_anything(signed, tmp_path, kind, data):
    output, public = signed

    def edit(image, attached):
        subject = referrers.Subject(MANIFEST, image.digest, len(image.manifest))
        mine = referrers.attach(
            kind, subject, [referrers.Part(kind, data, {"dev.cosignproject.cosign/signature": "?"})]
        )
        wanted = {sbom.TYPE: sbom.TYPE, provenance.TYPE: provenance.TYPE}.get(kind, "")
        return image, [
            *(item for item in attached if item.kind not in (wanted, referrers.SIGNATURE, referrers.ATTESTATION)),
            mine,
        ]

    assert not look(changed(output, tmp_path / "odd.tar", edit), public).ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["sha256", "model", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def spots(value, path=()):
    """List where a JSON value has parts."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from spots(part, (*path, key))


def replaced(value, path, new):
    """Put another value in place of a part."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_of_any_document_is_told_and_never_breaks_it(signed, tmp_path, data):
    output, public = signed

    def edited(text):
        value = json.loads(text)
        return canonical.encode(replaced(value, data.draw(st.sampled_from(list(spots(value)))), data.draw(JSON)))

    def edit(image, attached):
        target = data.draw(st.sampled_from([None, *range(len(attached))]))
        if target is None:
            config = edited(image.config)
            manifest = json.loads(image.manifest)
            manifest["config"] |= {"digest": sha(config), "size": len(config)}
            image = Image(config, canonical.encode(manifest), image.layers, image.tag, image.platform)
            return image, list(moved(image, attached))
        item = attached[target]
        if data.draw(st.booleans()):
            number = data.draw(st.integers(1, len(item.blobs) - 1))
            blobs = list(item.blobs)
            blobs[number] = edited(blobs[number])
            manifest = json.loads(item.manifest)
            manifest["layers"][number - 1] |= {"digest": sha(blobs[number]), "size": len(blobs[number])}
            changed_item = Attached(item.kind, canonical.encode(manifest), tuple(blobs))
        else:
            changed_item = Attached(item.kind, edited(item.manifest), item.blobs)
        return image, [*attached[:target], changed_item, *attached[target + 1 :]]

    report = look(changed(output, tmp_path / "fuzzed.tar", edit), public)
    assert report.rows
    assert all(row.verdict in ("ok", "failed", "not checked") for row in report.rows)


def test_keys_are_read_as_openssl_writes_them(tmp_path, monkeypatch):
    private, public = pair(tmp_path, "locked", "-aes-256-cbc", "-pass", "pass:open sesame")
    made = tmp_path / "data"
    made.write_bytes(b"text")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.delenv(keys.PASSWORD, raising=False)
    with pytest.raises(MissingError, match="there is no password") as caught:
        keys.signer(private)
    assert caught.value.then == "set MODELPACK_KEY_PASSWORD"
    monkeypatch.setenv(keys.PASSWORD, "wrong")
    with pytest.raises(StageError, match="cannot be decrypted"):
        keys.signer(private)
    keys._password.cache_clear()
    monkeypatch.setenv(keys.PASSWORD, "open sesame")
    signer = keys.signer(private)
    assert keys.verifier(public).accepts(signer.sign(b"text"), b"text")
    assert not keys.verifier(public).accepts(signer.sign(b"text"), b"test")
    assert not keys.verifier(public).accepts(b"nonsense", b"text")
    keys._password.cache_clear()


def test_keys_of_cosign_sign_too(tmp_path, monkeypatch):
    private, public = pair(tmp_path)
    place = cosigns(private, b"open sesame")
    monkeypatch.setenv(keys.PASSWORD, "open sesame")
    keys._password.cache_clear()
    assert keys.verifier(public).accepts(keys.signer(place).sign(b"text"), b"text")
    monkeypatch.setenv(keys.PASSWORD, "wrong")
    keys._password.cache_clear()
    with pytest.raises(StageError, match="cannot be decrypted"):
        keys.signer(place)
    place.write_text(place.read_text().replace("e", "E", 3))
    with pytest.raises(StageError, match="cannot be decrypted"):
        keys.signer(place)
    keys._password.cache_clear()


@pytest.mark.parametrize("text", [b"{}", b"[]", b"7", b'{"kdf":7}', b"?",
    b'{"kdf":{"name":"scrypt","params":{"N":1099511627776,"r":8,"p":1},"salt":""},"cipher":{"name":"nacl/secretbox"}}',
    b'{"kdf":{"name":"pbkdf","params":{}},"cipher":{"name":"nacl/secretbox"}}'])  # fmt: skip
def test_a_box_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        box.opened(base64.b64encode(text), b"password")


def test_a_box_that_another_program_made_is_opened():
    """A vector of The Update Framework's Go implementation, whose form cosign's keys have."""
    text = {"kdf": {"name": "scrypt", "params": {"N": 32768, "r": 8, "p": 1}, "salt": "N9a7x5JFGbrtB2uBR81jPwp0eiLR4A7FV3mjVAQrg1g="},
            "cipher": {"name": "nacl/secretbox", "nonce": "2h8HxMmgRfuYdpswZBQaU3xJ1nkA/5Ik"},
            "ciphertext": "SEW6sUh0jf2wfdjJGPNS9+bkk2uB+Cxamf32zR8XkQ=="}  # fmt: skip
    assert box.opened(base64.b64encode(json.dumps(text).encode()), b"supersecret") == b"reallyimportant"


def test_what_is_no_fitting_key_is_told(tmp_path):
    (tmp_path / "text").write_text("hello")
    openssl("genpkey", "-algorithm", "RSA", "-out", tmp_path / "rsa")
    for path in (tmp_path / "text", tmp_path / "rsa"):
        with pytest.raises(UsageError, match=r"P-256|no private key in PEM") as caught:
            keys.signer(path)
        assert "openssl genpkey" in caught.value.then
    with pytest.raises(UsageError, match="no public key"):
        keys.verifier(tmp_path / "rsa")
    with pytest.raises(UsageError, match="cannot be read"):
        keys.verifier(tmp_path / "none")


def test_signing_needs_a_way_out(tmp_path):
    private, _ = pair(tmp_path)
    with pytest.raises(ValidationError, match="give `output` or `push` too"):
        BuildConfig.model_validate({"sign": str(private)}, context={"base": tmp_path})
    config = BuildConfig.model_validate({"sign": "signer.key", "output": "x.tar"}, context={"base": tmp_path})
    plain = BuildConfig.model_validate({}, context={"base": tmp_path})
    assert canonical.digest(config) == canonical.digest(plain)
    (tmp_path / "text").write_text("hello")
    wrong = BuildConfig.model_validate({"sign": "text", "output": "x.tar"}, context={"base": tmp_path})
    with pytest.raises(UsageError, match="no private key"):
        build.preflight(wrong, Outside("cpu"))


def test_an_image_for_two_machines_is_signed_as_a_whole_and_each_alone(tmp_path, rooms, little_wheels, monkeypatch):
    settings = {"base": rooms, "platform": "linux/amd64,linux/arm64", "tag": "both:1"}
    image = run_stage(tmp_path, build, settings, model=onnx_artifact(tmp_path), base=tmp_path)
    private, public = pair(tmp_path)
    output = tmp_path / "both.tar"
    deliver(image, output, None, print, sign=private)
    for here in ("linux/amd64", "linux/arm64"):  # `docker load` gets the image of the machine that built it
        monkeypatch.setattr("modelpack.container.archive.host_platform", lambda here=here: here)
        report = look(output, public)
        assert {row.verdict for row in report.rows} == {"ok"}
        assert {row.where for row in report.rows} == {"", "linux/amd64", "linux/arm64"}
    head, chance, place = bytearray(output.read_bytes()), random.Random(3), tmp_path / "flipped.tar"
    for at in (chance.randrange(4 * 512 + 4096) for _ in range(60)):  # the documents that have no digest
        head[at] ^= 4
        place.write_bytes(head)
        assert not look(place).ok
        head[at] ^= 4
