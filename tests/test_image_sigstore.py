"""Images signed by an identity, with a Sigstore of this machine: what is signed, who counts, what is refused."""

import base64
import contextlib
import functools
import json
import operator
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from image_support import free_port, little_wheels, onnx_artifact, registry, sha
from modelpack import canonical
from modelpack.container.archive import Attached
from modelpack.container.deliver import deliver
from modelpack.container.proof import examine, keyed, keyless, keys, provenance, referrers, sbom, signature
from modelpack.container.reference import BaseRef
from modelpack.errors import MissingError, StageError, UsageError
from modelpack.stage import Outside
from modelpack.stages.build import BuildConfig, build
from signing import openssl, pair
from sigstores import ISSUER, WHO, Sigstore, running
from support import run_stage
from test_build import blobs
from test_image_platforms import rooms
from test_image_proof import CHECKS, JSON, changed, image, moved, replaced, served, spots, verdicts, with_layer

__all__ = ["image", "little_wheels", "registry", "rooms"]


@pytest.fixture
def sigstore(tmp_path, monkeypatch):
    """An instance, and somebody who is logged in there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "cache"))
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE", "GOOGLE_SERVICE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with running() as instance:
        for name, value in instance.write(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield instance


@pytest.fixture
def signed(image, sigstore, tmp_path):
    """The image's archive, signed."""
    output, told = tmp_path / "signed.tar", []
    deliver(image, output, None, told.append, sign="sigstore")
    assert told == [f"wrote {output}, signed by {WHO} of {ISSUER}"]
    return output


def look(path, who=WHO, issuer=ISSUER, root="root.json"):
    trust = keyless.trusted(who, issuer, path.parent / root if root else None)
    return examine.examine(BaseRef("oci-archive", str(path), path), trust, path.parent / "cache")


def test_what_an_identity_signed_is_checked_offline(signed, sigstore):
    sigstore.url = "http://127.0.0.1:9"  # it could not be asked
    report = look(signed)
    assert verdicts(report) == dict.fromkeys(CHECKS, "ok")
    named = {row.check: row.cause for row in report.rows if WHO in row.cause}
    assert named.keys() == {"signature", "provenance", "contents"}


@pytest.mark.parametrize("rekor", [1, 2])
def test_logs_of_both_versions_and_signed_times_do(image, sigstore, tmp_path, monkeypatch, rekor):
    with running(rekor, stamps=True) as other:
        for name, value in other.write(tmp_path).items():
            monkeypatch.setenv(name, value)
        deliver(image, tmp_path / "signed.tar", None, print, sign="sigstore")
    assert failed(look(tmp_path / "signed.tar")) == {}
    for _, _, bundle in manifests(tmp_path / "signed.tar").values():
        material = bundle["verificationMaterial"]
        assert len(material["timestampVerificationData"]["rfc3161Timestamps"]) == 1
        (entry,) = material["tlogEntries"]
        assert entry["kindVersion"]["kind"] == {1: "dsse", 2: "hashedrekord"}[rekor]


def test_a_log_without_times_needs_a_clock(image, sigstore, tmp_path, monkeypatch):
    with running(2) as other:
        for name, value in other.write(tmp_path).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(MissingError, match="inclusion promise or signed timestamp"):
            deliver(image, tmp_path / "signed.tar", None, print, sign="sigstore")


def manifests(archive):
    """Read the bundles in an archive: predicate type → entry of the index, manifest, bundle."""
    files, found = blobs(archive), {}
    for entry in json.loads(files["index.json"])["manifests"]:
        if entry.get("artifactType") == signature.BUNDLE:
            manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])
            (layer,) = manifest["layers"]
            bundle = json.loads(files[f"blobs/sha256/{layer['digest'][7:]}"])
            found[entry["annotations"]["dev.sigstore.bundle.predicateType"]] = entry, manifest, bundle
    return found


def test_bundles_have_the_form_that_cosign_looks_for(image, signed):
    digest = image.manifest.record["results"]["image"]["digest"]
    found = manifests(signed)
    assert found.keys() == {signature.SIGNED, provenance.PREDICATE, sbom.PREDICATE}
    for predicate, (entry, manifest, bundle) in found.items():
        assert manifest["artifactType"] == manifest["layers"][0]["mediaType"] == bundle["mediaType"] == signature.BUNDLE
        assert manifest["subject"]["digest"] == digest
        assert manifest["config"] == {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": sha(b"{}")}
        assert entry["annotations"] == manifest["annotations"]
        assert manifest["annotations"]["dev.sigstore.bundle.content"] == "dsse-envelope"
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        assert statement["predicateType"] == predicate
        assert statement["subject"] == [{"name": ANY, "digest": {"sha256": digest[7:]}}]


def test_openssl_agrees_with_the_signatures(signed, tmp_path):
    for _, _, bundle in manifests(signed).values():
        envelope = bundle["dsseEnvelope"]
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
        (tmp_path / "message").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
        (tmp_path / "made").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        raw = bundle["verificationMaterial"]["certificate"]["rawBytes"]
        (tmp_path / "leaf.der").write_bytes(base64.b64decode(raw))
        openssl("x509", "-inform", "DER", "-in", tmp_path / "leaf.der", "-pubkey", "-noout", "-out", tmp_path / "key")
        openssl("dgst", "-sha256", "-verify", tmp_path / "key", "-signature", tmp_path / "made", tmp_path / "message")


def failed(report):
    return {row.check: row.cause for row in report.rows if row.verdict == "failed"}


ASKED = {"provenance", "contents", "signature"}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"who": "eve@example.org"}, f"actual SANs: {{'{WHO}'}}"),
        ({"issuer": "https://gitlab.com"}, f"got '{ISSUER}', expected 'https://gitlab.com'"),
        ({"root": "other.json"}, "of another Sigstore instance"),
        ({"root": None}, "of another Sigstore instance"),
    ],
)
def test_another_signer_issuer_or_instance_does_not_count(signed, tmp_path, change, cause):
    (tmp_path / "other.json").write_text(json.dumps(Sigstore().root))
    found = failed(look(signed, **change))
    assert found.keys() == ASKED
    assert all(cause in text for text in found.values())


def test_a_bundle_of_the_public_instance_is_checked_with_the_keys_that_the_library_brings(sigstore):
    """A vector of the project sigstore-conformance, which a public workflow of theirs signed."""
    data = (Path(__file__).parent / "public_bundle.json").read_bytes()
    part = referrers.Part(signature.BUNDLE, data, {})
    workflow = ".github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
    who = f"https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/{workflow}"
    issuer = "https://token.actions.githubusercontent.com"
    statement = keyless.trusted(who, issuer, None).said(part)
    assert [item["name"] for item in statement["subject"]] == ["a.txt"]
    for other in ((WHO, issuer), (who, ISSUER)):
        with pytest.raises(StageError, match="match"):
            keyless.trusted(*other, None).said(part)


def test_a_key_is_no_identity_and_an_identity_no_key(image, signed, tmp_path):
    private, public = pair(tmp_path)
    deliver(image, tmp_path / "keyed.tar", None, print, sign=private)
    assert failed(look(tmp_path / "keyed.tar")).keys() == ASKED
    trust = keyed.KeyTrust(keys.verifier(public))
    assert failed(examine.examine(BaseRef("oci-archive", str(signed), signed), trust, tmp_path)).keys() == ASKED
    nobody = examine.examine(BaseRef("oci-archive", str(signed), signed), None, tmp_path)
    (row,) = (row for row in nobody.rows if row.check == "signature")
    assert (row.verdict, row.cause) == ("not checked", "it is signed, and nobody asked by whom")
    assert "--certificate-identity" in row.remedy


def test_bundles_moved_to_another_image_fail(signed, tmp_path):
    def edit(image, attached):
        other = with_layer(image, b"other")
        return other, moved(other, attached)

    assert failed(look(changed(signed, tmp_path / "moved.tar", edit))).keys() == {*ASKED, "model"}


def bundled(edit):
    """Change the bundle that signs the image, with every digest right again."""

    def change(image, attached):
        for item in attached:
            if b"cosign/sign/v1" not in item.manifest:
                yield item
                continue
            bundle, manifest = json.loads(item.blobs[1]), json.loads(item.manifest)
            data = canonical.encode(edit(bundle))
            manifest["layers"][0] |= {"digest": sha(data), "size": len(data)}
            yield Attached(item.kind, canonical.encode(manifest), (item.blobs[0], data))

    return lambda image, attached: (image, list(change(image, attached)))


def at(value, place):
    return functools.reduce(operator.getitem, place, value)


MATERIAL = ("verificationMaterial", "tlogEntries", 0)
PROMISE = (*MATERIAL, "inclusionPromise", "signedEntryTimestamp")


@pytest.mark.parametrize(
    "place",
    [
        ("dsseEnvelope", "payload"),
        ("dsseEnvelope", "signatures", 0, "sig"),
        ("verificationMaterial", "certificate", "rawBytes"),
        (*MATERIAL, "canonicalizedBody"),
        (*MATERIAL, "inclusionProof", "rootHash"),
        (*MATERIAL, "inclusionProof", "hashes", 0),
        PROMISE,
    ],
)
def test_one_changed_byte_in_what_is_signed_is_refused(signed, tmp_path, place):
    def edit(bundle):
        data = bytearray(base64.b64decode(at(bundle, place)))
        data[len(data) // 2] ^= 1
        return replaced(bundle, place, base64.b64encode(data).decode())

    found = failed(look(changed(signed, tmp_path / "changed.tar", bundled(edit))))
    assert found.keys() == {"signature"}
    assert found["signature"].startswith(f"no signature is that of {WHO}: ")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*MATERIAL, "integratedTime"), "1577836800"),
        ((*MATERIAL, "integratedTime"), "9" * 30),
        ((*MATERIAL, "logIndex"), "0"),
        ((*MATERIAL, "inclusionProof", "treeSize"), "2"),
        ((*MATERIAL, "inclusionProof", "checkpoint", "envelope"), "a log\n3\nAAAA\n\n\u2014 small AAAAAAAA\n"),
        (("dsseEnvelope", "payloadType"), "text/plain"),
        (("mediaType",), "application/vnd.dev.sigstore.bundle+json;version=0.1"),
        (("mediaType",), "\x1b[2J"),
        (("verificationMaterial", "tlogEntries"), []),
        ((*MATERIAL, "inclusionPromise"), None),
        ((), {}),
        ((), []),
    ],
)
def test_other_values_in_a_bundle_are_refused(signed, tmp_path, place, value):
    edit = bundled(lambda bundle: replaced(bundle, place, value))
    found = failed(look(changed(signed, tmp_path / "changed.tar", edit)))
    assert found.keys() == {"signature"}
    assert found["signature"].isprintable()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_of_a_bundle_never_breaks_it_nor_changes_what_was_said(signed, sigstore, data):
    bundle = next(bundle for predicate, (_, _, bundle) in manifests(signed).items() if predicate == signature.SIGNED)
    trust = keyless.trusted(WHO, ISSUER, signed.parent / "root.json")

    def said(value):
        return trust.said(referrers.Part(signature.BUNDLE, canonical.encode(value), {}))

    right = said(bundle)
    spot = data.draw(st.sampled_from(list(spots(bundle))))
    with contextlib.suppress(StageError):
        assert said(replaced(bundle, spot, data.draw(JSON))) == right


@pytest.mark.registry
def test_a_registry_lists_bundles_and_keeps_those_of_others(image, sigstore, registry, tmp_path, monkeypatch):
    name = f"{registry}/a/small:2"
    digest = image.manifest.record["results"]["image"]["digest"]
    told = []
    deliver(image, None, name, told.append, sign="sigstore")
    assert told[1] == f"attached 5 documents to it, signed by {WHO} of {ISSUER}"
    monkeypatch.setenv(keyless.TOKEN, sigstore.token("eve@example.org"))
    deliver(image, None, name, told.append, sign="sigstore")
    for who in (WHO, "eve@example.org"):
        report = examine.examine(
            BaseRef("docker", name), keyless.trusted(who, ISSUER, tmp_path / "root.json"), tmp_path / "cache"
        )
        assert verdicts(report) == dict.fromkeys(CHECKS[1:], "ok")
    listed = served(f"http://{registry}/v2/a/small/manifests/sha256-{digest[7:]}")["manifests"]
    kinds = [item["annotations"]["dev.sigstore.bundle.predicateType"] for item in listed if "annotations" in item]
    assert sorted(kinds) == sorted([signature.SIGNED, provenance.PREDICATE, sbom.PREDICATE] * 2)


def test_the_index_of_two_platforms_is_signed_too(tmp_path, rooms, little_wheels, sigstore):
    settings = {"base": rooms, "platform": "linux/amd64,linux/arm64", "tag": "both:1"}
    both = run_stage(tmp_path, build, settings, model=onnx_artifact(tmp_path), base=tmp_path)
    deliver(both, tmp_path / "both.tar", None, print, sign="sigstore")
    assert failed(look(tmp_path / "both.tar")) == {}
    assert len(sigstore.log.entries) == 2 + 3 + 2 * 2


def test_a_runner_of_github_signs_as_its_workflow(image, sigstore, tmp_path, monkeypatch):
    monkeypatch.delenv(keyless.TOKEN)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    with pytest.raises(MissingError, match="insufficient OIDC token permissions"):
        keyless.check()
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of a runner")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{sigstore.url}/token?runner=1")
    deliver(image, tmp_path / "signed.tar", None, print, sign="sigstore")
    assert failed(look(tmp_path / "signed.tar", who="https://github.com/a/b/.github/build.yml")) == {}


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("refuse", MissingError, "403 Client Error"),
        ("unlogged", MissingError, "signed certificate timestamp"),
        ("stranger", StageError, "does not hold: .*invalid signature"),
        ("late", StageError, "does not hold: its certificate is of another"),
    ],
)
def test_an_instance_that_errs_signs_nothing(image, sigstore, tmp_path, trouble, kind, message):
    sigstore.trouble = sigstore.log.trouble = trouble
    with pytest.raises(kind, match=message):
        deliver(image, tmp_path / "signed.tar", None, print, sign="sigstore")
    assert not (tmp_path / "signed.tar").exists()


def test_an_instance_that_does_not_answer_is_missing(image, sigstore, tmp_path):
    sigstore.url = f"http://127.0.0.1:{free_port()}"
    sigstore.write(tmp_path)
    with pytest.raises(MissingError, match=r"Sigstore did not sign: .*Connection refused") as caught:
        deliver(image, tmp_path / "signed.tar", None, print, sign="sigstore")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("token", "message"),
    [("", "nobody says who signs"), ("nonsense", "malformed"), ("old", "malformed"), ("elsewhere", "malformed")],
)
def test_without_a_token_that_fits_the_first_step_does_not_begin(sigstore, tmp_path, monkeypatch, token, message):
    made = {"old": sigstore.token(seconds=-60), "elsewhere": sigstore.token(aud="else")}
    monkeypatch.setenv(keyless.TOKEN, made.get(token, token))
    config = BuildConfig.model_validate({"sign": "sigstore", "output": "x.tar"}, context={"base": tmp_path})
    with pytest.raises(MissingError, match=message) as caught:
        build.preflight(config, Outside("cpu"))
    assert "SIGSTORE_ID_TOKEN" in caught.value.then


def test_settings_that_sign_without_a_key(tmp_path):
    with pytest.raises(ValidationError, match="give `output` or `push` too"):
        BuildConfig.model_validate({"sign": "sigstore"}, context={"base": tmp_path})
    (tmp_path / "sigstore").write_text("a file of that name is named ./sigstore")
    given = {name: {"sign": name, "output": "x.tar"} for name in ("sigstore", "./sigstore")}
    read = {name: BuildConfig.model_validate(value, context={"base": tmp_path}).sign for name, value in given.items()}
    assert read["sigstore"] == "sigstore"
    assert read["./sigstore"].path == tmp_path / "sigstore"


@pytest.mark.parametrize("content", [None, "hello", "{}", '{"mediaType": "x"}'])
def test_files_that_describe_no_instance_are_told(sigstore, tmp_path, monkeypatch, content):
    place = tmp_path / "wrong.json"
    if content is not None:
        place.write_text(content)
    monkeypatch.setenv(keyless.CONFIG, str(place))
    for act in (keyless.check, keyless.seal, lambda: keyless.trusted(WHO, ISSUER, place)):
        with pytest.raises(UsageError, match="cannot be read" if content is None else "no (trusted root|client trust)"):
            act()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore", None)
    for act in (keyless.check, lambda: keyless.trusted(WHO, ISSUER, None)):
        with pytest.raises(MissingError, match="need 'sigstore'") as caught:
            act()
        assert caught.value.then == "pip install 'modelpack[sigstore]'"
