"""Logins: what `docker login` and credential helpers keep, tokens, passwords, and who never gets to see them."""

import base64
import json
import stat

import pytest

from image_support import PYTHON, archive_of, image_files, tar_of, zipped
from modelpack.container import login
from modelpack.container import registry as registries
from modelpack.container.http import Registry
from modelpack.container.login import Login
from modelpack.container.reference import ImageName
from modelpack.errors import MissingError
from registries import guarded, log_in, publish, serving, small

__all__ = ["guarded", "small"]


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A directory for docker's configuration, and a function that writes a credential helper."""
    folder, programs = tmp_path / "docker", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("PATH", str(programs), prepend=":")

    def helper(name, script):
        path = programs / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\nread server\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def write(**config):
        (folder / "config.json").write_text(json.dumps(config))

    return write, helper


def coded(text) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("entry", "known"),
    [
        ({"auth": coded("me:secret")}, Login("me", "secret")),
        ({"auth": coded("me:a:b\u00e9")}, Login("me", "a:b\u00e9")),
        ({"username": "me", "password": "secret"}, Login("me", "secret")),
        ({"auth": coded("me:"), "identitytoken": "T"}, Login("me", "", "T")),
        ({}, Login()),
        (None, Login()),
    ],
)
def test_what_docker_login_stored_is_read(docker, entry, known):
    docker[0](auths={"example.org:5000": entry})
    assert login.find("example.org:5000") == known
    assert login.find("example.org") == Login()


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_is_known_by_all_of_its_names(docker, key):
    docker[0](auths={key: {"auth": coded("me:secret")}})
    assert login.find("docker.io") == Login("me", "secret")


def test_without_a_configuration_the_user_is_a_stranger(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    assert login.find("example.org") == Login()
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    log_in(tmp_path / ".docker", "example.org")
    assert login.find("example.org") == Login("me", "secret")


def test_a_helper_of_a_registry_goes_before_the_store_of_all(docker):
    write, helper = docker
    helper("one", """[ "$1" = get ] && echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"one\\"}" """)
    helper("all", """echo '{"Username":"<token>","Secret":"identity"}'""")
    write(credHelpers={"example.org": "one"}, credsStore="all")
    assert login.find("example.org") == Login("example.org", "one")
    assert login.find("elsewhere.org") == Login(token="identity")


def test_what_a_helper_does_not_know_may_be_in_the_file(docker):
    write, helper = docker
    helper("all", "echo credentials not found in native keychain; exit 1")
    write(credsStore="all", auths={"example.org": {"auth": coded("me:secret")}})
    assert login.find("example.org") == Login("me", "secret")
    assert login.find("elsewhere.org") == Login()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo the keychain is locked >&2; exit 1", "fails: the keychain is locked"),
        ("exit 7", "fails: code 7"),
        ("echo []", "something else than credentials"),
        ("echo '{'", "something else than credentials"),
        ("exec sleep 60", "silent for 0.2 seconds"),
    ],
)
def test_a_helper_that_fails_is_told(docker, monkeypatch, script, reason):
    write, helper = docker
    helper("bad", script)
    write(credsStore="bad")
    monkeypatch.setattr(login, "_PATIENCE", 0.2 if "sleep" in script else 60.0)
    with pytest.raises(MissingError, match=reason) as caught:
        login.find("example.org")
    assert caught.value.where == "docker-credential-bad for example.org"
    assert caught.value.exit_code == 4


def test_a_helper_that_is_not_installed_is_named(docker):
    docker[0](credHelpers={"example.org": "none-such"})
    with pytest.raises(MissingError, match="not installed") as caught:
        login.find("example.org")
    assert "install docker-credential-none-such" in caught.value.then


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ('{"auths": 7}', "has a 'auths'"),
        ('{"auths": {"example.org": {"auth": "?"}}}', "unreadable 'auth' for example.org"),
        ('{"credsStore": "../evil"}', "names a credential helper"),
        ('{"credHelpers": {"example.org": ["x"]}}', "names a credential helper"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_no_reason_to_go_on_as_a_stranger(docker, tmp_path, text, reason):
    (tmp_path / "docker" / "config.json").write_text(text)
    with pytest.raises(MissingError, match=reason) as caught:
        login.find("example.org")
    assert caught.value.where.endswith("config.json")


def test_a_token_is_bought_with_the_password_that_docker_login_stored(small, tmp_path):
    state, host = small
    publish(state)
    state["password"] = "secret"
    with pytest.raises(MissingError, match="gives no token") as caught:
        registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path)
    assert caught.value.then == f"docker login {host}"
    log_in(tmp_path / "docker", host)
    assert len(registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path).layers) == 1
    assert [path for _, path in state["seen"] if "/token" in path][1:] == [
        "/token?service=test&scope=repository%3Aa%2Fb%3Apull"
    ]


def test_a_token_is_bought_with_an_identity_token(small, tmp_path):
    state, host = small
    publish(state)
    state["password"] = "identity"
    log_in(tmp_path / "docker", host, identitytoken="identity")
    assert len(registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path).layers) == 1
    assert [verb for verb, path in state["seen"] if path == "/token"] == ["POST"]


def test_one_token_has_all_rights_that_a_push_needs(small, tmp_path):
    state, host = small
    log_in(tmp_path / "docker", host)
    state |= {"password": "secret", "scope": "repository:a/b:pull,push repository:c:pull"}
    scopes = ("repository:a/b:pull,push", "repository:c:pull")
    with Registry(ImageName.parse(f"{host}/a/b:1"), scopes) as registry:
        registry.send("HEAD", "blobs/x", allow=(404,))
        registry.send("POST", "blobs/uploads/", allow=(202,))
    assert sum("/token" in path for _, path in state["seen"]) == 1


def test_a_token_is_bought_anew_before_it_ends(small, tmp_path):
    state, host = small
    log_in(tmp_path / "docker", host)
    state |= {"password": "secret", "expires": 5}
    with Registry(ImageName.parse(f"{host}/a/b:1")) as registry:
        for _ in range(3):
            registry.send("HEAD", "blobs/x", allow=(404,))
    assert [verb for verb, path in state["seen"] if "/token" not in path] == ["HEAD"] * 4
    assert sum("/token" in path for _, path in state["seen"]) == 3


@pytest.mark.parametrize("status", [302, 307])
def test_credentials_do_not_follow_to_another_address(small, tmp_path, status):
    state, host = small
    digest = publish(state)
    log_in(tmp_path / "docker", host)
    state["password"] = "secret"
    (blob,) = [path for path in state["answers"] if "/blobs/" in path and digest not in path][:1]
    with serving() as (other, elsewhere):
        other["answers"] = dict(state["answers"])
        state["moved"] = {blob: (status, f"http://{elsewhere}{blob}")}
        registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path / "cache")
        assert [path for _, path in other["seen"]] == [blob]
        assert "Authorization" not in other["headers"][0]
        assert any("Authorization" in item for item in state["headers"])


def test_a_redirect_without_end_is_cut_off(small, tmp_path):
    state, host = small
    state["moved"] = {"/v2/a/b/manifests/1": (302, "/v2/a/b/manifests/1")}
    with pytest.raises(MissingError, match="redirects more than 5 times"):
        registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path)
    assert len(state["seen"]) == 6


def test_plain_http_is_spoken_to_this_machine_and_to_who_is_named(monkeypatch):
    def root(name):
        with Registry(ImageName.parse(name)) as registry:
            return registry._root

    assert root("127.0.0.1:5000/a:1") == "http://127.0.0.1:5000/v2/a/"
    assert root("example.org/a:1") == "https://example.org/v2/a/"
    monkeypatch.setenv("MODELPACK_PLAIN_HTTP", "other, example.org")
    assert root("example.org/a:1") == "http://example.org/v2/a/"
    assert root("example.org:80/a:1") == "https://example.org:80/v2/a/"


def test_a_registry_without_tls_is_told_how_to_name_it(small, monkeypatch):
    monkeypatch.setattr(ImageName, "loopback", False)  # as if it were another machine
    _, host = small
    with (
        Registry(ImageName.parse(f"{host}/a/b:1")) as registry,
        pytest.raises(MissingError, match=r"does not answer: .*SSL") as caught,
    ):
        registry.send("GET", "manifests/1")
    assert caught.value.then.endswith(f"MODELPACK_PLAIN_HTTP={host}")


def test_neither_tokens_nor_content_go_over_plain_http_elsewhere(docker):
    from modelpack.container.token import Challenge

    with Registry(ImageName.parse("example.org/a/b")) as registry:
        with pytest.raises(MissingError, match="which is not safe"):
            registry._bought(Challenge.parse('Bearer realm="http://example.org/token"'))
        with pytest.raises(MissingError, match=r"sends us to 'http://example\.org/x', which is not safe"):
            registry.send("GET", "http://example.org/x")


def test_an_unknown_way_of_authentication_is_told(small, tmp_path):
    state, host = small
    state["busy"] = [(401, {"WWW-Authenticate": 'Negotiate realm="x"'})]
    with pytest.raises(MissingError, match="unknown way: 'Negotiate"):
        registries.pull(f"{host}/a/b:1", "linux/amd64", tmp_path)


@pytest.mark.registry
def test_a_registry_with_passwords_takes_the_right_one(guarded, tmp_path):
    files = image_files([tar_of(PYTHON)], compress=zipped)
    archive = tmp_path / "image.tar"
    archive.write_bytes(archive_of(files))
    with pytest.raises(MissingError, match="wants other credentials") as caught:
        registries.push(archive, f"{guarded}/a/b:1")
    assert f"docker login {guarded}" in caught.value.then
    log_in(tmp_path / "docker", guarded, auth=coded("me:wrong"))
    with pytest.raises(MissingError, match="wants other credentials"):
        registries.push(archive, f"{guarded}/a/b:1")
    log_in(tmp_path / "docker", guarded)
    pushed = registries.push(archive, f"{guarded}/a/b:1")
    assert registries.pull(pushed, "linux/amd64", tmp_path / "cache").digest == pushed.rpartition("@")[2]
