"""verify of an image: what counts as one, what it prints, its exit codes."""

import pytest

from commands import Shell
from image_support import registry, tar_of
from modelpack.container.archive import ARCHIVE
from modelpack.container.deliver import deliver
from modelpack.container.proof.found import meant
from modelpack.errors import UsageError
from signing import pair
from sigstores import ISSUER, WHO, running
from test_build import blobs
from test_image_proof import CHECKS, image, little_wheels

__all__ = ["image", "little_wheels", "registry"]


IDENTITY = ["small.tar", "--certificate-identity", "me", "--certificate-oidc-issuer", "you"]


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path / "verified", [], capsys, monkeypatch)


@pytest.fixture
def archive(image, tmp_path):
    """A signed archive in the working directory."""
    private, _ = pair(tmp_path)
    deliver(image, tmp_path / "small.tar", None, lambda _text: None, sign=private)
    return tmp_path / "small.tar"


def test_an_image_is_told_row_by_row(shell, archive):
    result = shell("verify", "small.tar", "--key", "signer.pub")
    assert result.code == 0, result.out
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[1:] if line[:1].isalpha()][: len(CHECKS)] == CHECKS
    assert lines[-1] == f"oci-archive:small.tar: {len(CHECKS)} ok"


def test_an_identity_is_asked_for_by_the_names_that_cosign_has(shell, image, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    with running() as sigstore:
        for name, value in sigstore.write(tmp_path).items():
            monkeypatch.setenv(name, value)
        deliver(image, tmp_path / "small.tar", None, lambda _text: None, sign="sigstore")
    given = ["--certificate-oidc-issuer", ISSUER, "--trusted-root", "root.json"]
    right = shell("verify", "small.tar", "--certificate-identity", WHO, *given)
    assert right.code == 0, right.out
    assert f"signed by {WHO}" in right.out
    wrong = shell("verify", "small.tar", "--certificate-identity", "eve@example.org", *given)
    assert wrong.code == 3
    assert wrong.out.count("FAILED") == 3


def test_json_holds_every_check_and_the_digest(shell, archive, image):
    found = shell("verify", "small.tar", "--json").json
    assert found["ok"] is True
    assert found["digest"] == image.manifest.record["results"]["image"]["digest"]
    assert [item["check"] for item in found["checks"]] == CHECKS
    assert found["checks"][-1]["verdict"] == "not checked"


def test_damage_is_exit_3_and_says_what_to_do(shell, archive):
    data = bytearray(archive.read_bytes())
    data[-1] ^= 1
    archive.write_bytes(data)
    result = shell("verify", "small.tar")
    assert result.code == 3
    (line,) = (line for line in result.out.splitlines() if "FAILED" in line)
    assert line.startswith("archive")
    assert f"byte {len(data) - 1} is not as written" in line


@pytest.mark.registry
def test_an_image_in_a_registry_is_named_by_its_reference(shell, image, registry, tmp_path):
    private, _ = pair(tmp_path)
    deliver(image, None, f"{registry}/small:1", lambda _text: None, sign=private)
    for name in (f"docker://{registry}/small:1", f"{registry}/small:1"):
        assert shell("verify", name, "--key", "signer.pub").code == 0
    assert shell("verify", f"{registry}/none:1").code == 2
    assert shell("verify", "127.0.0.1:9/none:1").code == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tar"], "no such file"),
        (["docker-daemon:small"], "images in docker-daemon: are not examined"),
        (["oci:none"], "no such file or directory"),
        (["small.tar", "--key", "none.pub"], "the key cannot be read"),
        (["small.tar", "--key", "signer.key"], "no public key in PEM"),
        (["small.tar", "--skip", "speed"], "this is about models"),
        (["--key", "signer.pub"], "only images are signed"),
        (["run", "--key", "signer.pub"], "only images are signed"),
        (["--certificate-identity", "me", "--certificate-oidc-issuer", "you"], "only images are signed"),
        (["small.tar", "--certificate-identity", "me"], "an identity is someone whom an issuer vouches for"),
        (["small.tar", "--certificate-oidc-issuer", "you"], "an identity is someone whom an issuer vouches for"),
        (["small.tar", "--trusted-root", "root.json"], "an identity is someone whom an issuer vouches for"),
        (["small.tar", "--key", "signer.pub", "--certificate-identity", "me"], "with a key or an identity"),
        ([*IDENTITY, "--trusted-root", "none"], "No such file"),
        ([*IDENTITY, "--trusted-root", "small.tar"], "no trusted root"),
    ],
)
def test_what_cannot_be_examined_is_an_error(shell, archive, arguments, message):
    result = shell("verify", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_what_is_no_image_at_all_fails(shell, tmp_path):
    (tmp_path / "text.tar").write_text("hello")
    result = shell("verify", "text.tar")
    assert result.code == 3
    assert "image" in result.out


def test_what_docker_saved_and_another_signer_are_told_with_what_to_do(shell, archive, tmp_path):
    saved = tar_of({"manifest.json": (0o644, b"[]")})
    (tmp_path / "saved.tar").write_bytes(saved)
    result = shell("verify", "saved.tar", "--json")
    (row,) = result.json["checks"]
    assert (result.code, row["verdict"]) == (3, "failed")
    assert "as `docker save` writes it" in row["cause"]
    assert "`modelpack build --output`" in row["remedy"]
    (tmp_path / "others").mkdir()
    pair(tmp_path / "others")
    rows = shell("verify", "small.tar", "--key", "others/signer.pub", "--json").json["checks"]
    told = {row["check"]: row["remedy"] for row in rows if row["verdict"] == "failed"}
    assert told == dict.fromkeys(
        ("provenance", "contents", "signature"), "compare that with who built the image, or ask them"
    )


def test_an_image_with_what_is_attached_to_it_is_not_taken_for_models(shell, archive):
    result = shell("pull", "oci-archive:small.tar", "--output", "out")
    assert (result.code, "this is a container image, not a model" in result.err) == (2, True)


def test_words_that_mean_images_and_words_that_do_not(tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    for name, data in blobs(image.file(ARCHIVE)).items():
        (tmp_path / "layout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layout" / name).write_bytes(data)
    (tmp_path / "a.tar").touch()
    schemes = {name: found.scheme for name in ("a.tar", "layout", "oci:layout", "localhost/x", "h:1/x:2", "ghcr.io/a/b")
               if (found := meant(name))}  # fmt: skip
    assert schemes == {"a.tar": "oci-archive", "layout": "oci", "oci:layout": "oci", "localhost/x": "docker",
                       "h:1/x:2": "docker", "ghcr.io/a/b": "docker"}  # fmt: skip
    for text in ("quickstart", "quickstart:build", "abcdef", "model.onnx", "work/model.onnx", "a/b", "./text"):
        assert meant(text) is None
    with pytest.raises(UsageError, match="no image reference"):
        meant("h:1/x y")
