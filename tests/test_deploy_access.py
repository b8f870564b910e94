"""Tokens, TLS and clients' certificates: the server is run with exactly what the files say, and asked as they say."""

import base64
import json
import shutil
import ssl
import subprocess
import urllib.request
from dataclasses import replace

import jsonschema
import pytest
import yaml

from certificates import Authority
from deploying import (
    FACTS,
    IMAGE,
    belongings,
    google,
    installed,
    is_what_the_cluster_takes,
    read,
    rendered,
    seen_by_prometheus,
    vendored,
    with_payload,
)
from modelpack import deploy
from modelpack.deploy import access
from modelpack.deploy.facts import Wish
from modelpack.errors import UsageError
from serving import JSON, Server, linear

TOKENS = Wish(tokens="digits-tokens")
TLS = Wish("localhost", tls="digits-tls")
ALL = Wish("localhost", tokens="digits-tokens", tls="digits-tls", clients="digits-clients")
SHARED = replace(ALL, clients="digits-tls")
"""As cert-manager keeps it: the authority beside the certificate."""
ROWS = b'{"instances": [[1, 2, 3, 4]]}'
OPTIONS = {"tokens": "--token-secret", "tls": "--tls-secret", "clients": "--client-ca-secret"}
TAKEN = {
    "kubernetes": {"tokens", "tls", "clients"},
    "compose": {"tokens", "tls", "clients"},
    "kserve": {"tokens"},
    "cloudrun": {"tokens"},
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def mine(authority, tmp_path_factory):
    """A directory with what the user has: a certificate, its key, and the authority of clients."""
    return belongings(authority, tmp_path_factory.mktemp("mine"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return linear(tmp_path_factory.mktemp("model"))


def made_by_kubectl(wish, folder):
    """Give the cluster's secrets as the commands make them: name → part → content."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    found = {}
    for command in access.commands("kubernetes", wish, "anywhere"):
        dry = f"{command} --dry-run=client --output=json"
        done = subprocess.run(["bash", "-c", dry], cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        secret = json.loads(done.stdout)
        is_what_the_cluster_takes(secret)
        assert secret.get("type") == ("kubernetes.io/tls" if "tls.crt" in secret["data"] else None)
        found[secret["metadata"]["name"]] = {key: base64.b64decode(text) for key, text in secret["data"].items()}
    return found


def mounted(pod, secrets, root):
    """Lay a pod's secrets where its container sees them, below a directory; give its variables for there."""
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume["secret"] for volume in pod.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        assert mount["readOnly"] is True
        volume = volumes.pop(mount["name"])
        place = root / mount["mountPath"][1:]
        place.mkdir(parents=True)
        for item in volume["items"]:
            (place / item["path"]).write_bytes(secrets[volume["secretName"]][item["key"]])
    assert volumes == {}
    return settings({item["name"]: item["value"] for item in container["env"]}, root)


def settings(environment, root):
    """Give variables as the tests' server takes them; it need not wait for a cluster to notice that it stops."""
    return {
        name.removeprefix("MODELPACK_").lower(): value.replace("/run/", f"{root}/run/")
        for name, value in environment.items()
    } | {"drain_delay": 0}


def probed(server, probe):
    """Ask as the kubelet does: with no certificate, and taking any."""
    asked = probe["httpGet"]
    scheme = asked.get("scheme", "HTTP").lower()
    address = f"{scheme}://127.0.0.1:{server.port}{asked['path']}"
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl._create_unverified_context())]
    return urllib.request.build_opener(*handlers).open(address, timeout=30).status


def asks_for(server, authority, wish, token):
    """Hold a server against what was wished: who shows everything is served, and who lacks one thing is not."""
    shown = authority.issue("client") if wish.clients else None

    def asked(certificate, **headers):
        server.trusting = authority.trusted(certificate) if wish.tls else None
        return server.ask("POST", "/predict", ROWS, JSON | headers)[0]

    proof = {"authorization": f"Bearer {token}"} if wish.tokens else {}
    assert asked(shown, **proof) == 200
    if wish.tokens:
        assert asked(shown) == 401
        assert asked(shown, authorization=f"Bearer {token[::-1]}") == 401
    if wish.clients:
        assert asked(None, **proof) == 403


@pytest.mark.parametrize("wish", [TOKENS, TLS, ALL, SHARED], ids=["tokens", "tls", "all", "shared"])
def test_the_server_of_a_pod_is_guarded_and_its_probes_pass(wish, mine, authority, model, tmp_path):
    files = rendered("kubernetes", FACTS, wish)
    pod = read(files, "deployment.yaml")["spec"]["template"]["spec"]
    secrets = made_by_kubectl(wish, mine)
    given = mounted(pod, secrets, tmp_path)
    trusting = authority.trusted() if wish.tls else None
    (container,) = pod["containers"]
    with Server(model, trusting=trusting, **given) as server:
        for kind in ("startup", "liveness", "readiness"):
            assert probed(server, container[f"{kind}Probe"]) == 200
        token = secrets[wish.tokens]["tokens"].decode().strip() if wish.tokens else ""
        asks_for(server, authority, wish, token)


@pytest.mark.prometheus
def test_prometheus_sees_a_guarded_pod_as_the_service_monitor_says(mine, model, authority, tmp_path):
    files = rendered("kubernetes", FACTS, ALL)
    secrets = made_by_kubectl(ALL, mine)
    given = mounted(read(files, "deployment.yaml")["spec"]["template"]["spec"], secrets, tmp_path)
    (endpoint,) = read(files, "monitoring/servicemonitor.yaml")["spec"]["endpoints"]
    (port,) = read(files, "service.yaml")["spec"]["ports"]
    assert endpoint["port"] == port["name"]
    trusted = endpoint["tlsConfig"]["ca"]["secret"]
    (tmp_path / "known.pem").write_bytes(secrets[trusted["name"]][trusted["key"]])
    job = {
        "job_name": "pods", "scheme": endpoint["scheme"], "metrics_path": endpoint["path"],
        "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [{"targets": ["model:8080"]}],
        "tls_config": {
            "ca_file": str(tmp_path / "known.pem"), "server_name": endpoint["tlsConfig"]["serverName"]
        },
    }  # fmt: skip
    scraping = {"prometheus/prometheus.yml": yaml.safe_dump({"scrape_configs": [job]})}
    with Server(model, trusting=authority.trusted(), **given) as server:
        assert seen_by_prometheus(scraping, tmp_path, f"127.0.0.1:{server.port}")["job"] == "pods"


@pytest.mark.prometheus
def test_compose_guards_the_server_and_its_prometheus_sees_it(mine, model, authority, tmp_path):
    files, folder = rendered("compose", FACTS, ALL), tmp_path / "it's here"
    installed(ALL, mine, folder)
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o700, "nobody else of the machine may enter"
    document = read(files, "compose.yaml")
    service, prometheus = document["services"]["model"], document["services"]["prometheus"]
    for shown in service["secrets"]:
        source = folder / document["secrets"][shown["source"]]["file"]
        assert source.stat().st_mode & 0o777 == 0o644, "the container's user reads them"
        place = tmp_path / shown["target"][1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    scraping, alerts = files["prometheus/prometheus.yml"], files["prometheus/alerts.yml"]
    (known,) = (shown["target"] for shown in prometheus["secrets"])
    assert yaml.safe_load(scraping)["scrape_configs"][0]["tls_config"]["ca_file"] == known
    scraping = scraping.replace("/run/", f"{tmp_path}/run/").replace('"5s"', '"1s"')
    given = settings(service["environment"], tmp_path)
    with Server(model, trusting=authority.trusted(), **given) as server:
        token = (folder / "secrets" / "digits-tokens" / "tokens").read_text().strip()
        asks_for(server, authority, ALL, token)
        assert (
            seen_by_prometheus(
                {"prometheus/prometheus.yml": scraping, "prometheus/alerts.yml": alerts},
                tmp_path,
                f"127.0.0.1:{server.port}",
            )["job"]
            == "localhost"
        )


@pytest.mark.parametrize("wish", [TOKENS, TLS, ALL, SHARED], ids=["tokens", "tls", "all", "shared"])
@pytest.mark.parametrize("target", ["kubernetes", "compose"])
def test_what_is_guarded_is_what_the_platform_reads(target, wish, tmp_path):
    files = rendered(target, replace(FACTS, image=replace(IMAGE, grpc=True)), wish)
    if target == "compose":
        schema = jsonschema.Draft202012Validator(vendored("compose-spec"))
        schema.validate(read(files, "compose.yaml"))
        assert files["secrets/.gitignore"].endswith("*\n!.gitignore\n")
        return
    for name in files:
        if name.endswith(".yaml"):
            is_what_the_cluster_takes(read(files, name))
    ports = read(files, "service.yaml")["spec"]["ports"]
    scheme = "https" if wish.tls else "http"
    assert [port["appProtocol"] for port in ports] == [scheme, scheme if wish.tls else "grpc"]
    (container,) = read(files, "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert ports[0]["targetPort"] == container["ports"][0]["name"] == container["livenessProbe"]["httpGet"]["port"]


@pytest.mark.docker
def test_compose_itself_reads_guarded_files(tmp_path):
    if shutil.which("docker-compose") is None:
        pytest.skip("needs Debian's docker-compose")
    (tmp_path / "compose.yaml").write_text(rendered("compose", FACTS, ALL)["compose.yaml"])
    done = subprocess.run(["docker-compose", "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    understood = yaml.safe_load(done.stdout)
    assert understood["secrets"]["tls.key"]["file"] == str(tmp_path / "secrets" / "digits-tls" / "tls.key")
    assert {shown["source"] for shown in understood["services"]["model"]["secrets"]} == understood["secrets"].keys()


def test_kserve_and_cloud_run_take_tokens():
    runtime = read(rendered("kserve", FACTS, TOKENS), "servingruntime.yaml")
    is_what_the_cluster_takes(runtime)
    deployment = read(rendered("kubernetes", FACTS, TOKENS), "deployment.yaml")["spec"]["template"]["spec"]
    assert runtime["spec"]["volumes"] == deployment["volumes"]
    (here,), (there,) = runtime["spec"]["containers"], deployment["containers"]
    assert (here["volumeMounts"], here["env"]) == (there["volumeMounts"], there["env"])
    service = read(rendered("cloudrun", FACTS, TOKENS), "service.yaml")
    jsonschema.Draft202012Validator(google("run.v1", "Service")).validate(service)
    spec = service["spec"]["template"]["spec"]
    (container,), (volume,) = spec["containers"], spec["volumes"]
    (mount,) = container["volumeMounts"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert mount["name"] == volume["name"]
    assert env["MODELPACK_TOKEN_FILE"] == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert "MODELPACK_OPEN_METRICS" not in env, "nothing scrapes it there"


@pytest.mark.parametrize("wished", OPTIONS)
@pytest.mark.parametrize("target", deploy.TARGETS)
def test_a_target_uses_a_secret_or_refuses_it(target, wished, tmp_path):
    wish = Wish(**({"tls": "for-tls"} if wished == "clients" and target in TAKEN else {}) | {wished: "for-this"})
    if wished in TAKEN.get(target, ()):
        files = rendered(target, FACTS, wish)
        assert any("for-this" in text for text in files.values())
        assert any("for-this" in command for command in access.commands(target, wish, "."))
        return
    with pytest.raises(UsageError) as caught:
        rendered(target, with_payload(tmp_path), wish)
    assert caught.value.where in OPTIONS.values()
    assert caught.value.then.startswith("leave --")


@pytest.mark.parametrize("target", TAKEN)
def test_without_a_secret_nothing_of_it_is_written(target):
    text = "".join(rendered(target, FACTS, Wish()).values())
    assert not any(word in text for word in ("MODELPACK_T", "OPEN_METRICS", "secret", "HTTPS", "volumeMounts"))
    assert access.commands(target, Wish(), ".") == []


@pytest.mark.parametrize(("target", "wish", "message"), [
    ("kubernetes", Wish(clients="a"), "clients show certificates by TLS alone"),
    ("kubernetes", Wish(tokens="A"), "'A' is no name of a secret"),
    ("compose", Wish(tls="../up"), "'../up' is no name of a secret"),
    ("compose", Wish(tls="a b"), "'a b' is no name of a secret"),
    ("cloudrun", Wish(tokens="a.b"), "Secret Manager takes no dot: 'a.b'"),
])  # fmt: skip
def test_secrets_that_cannot_be_are_told(target, wish, message):
    with pytest.raises(UsageError) as caught:
        rendered(target, FACTS, wish)
    assert caught.value.what == message
    assert caught.value.then
