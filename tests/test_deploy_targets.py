"""What each target writes, held against the schemas that its platform publishes, and what it must say."""

import re
import shutil
import subprocess
from dataclasses import replace

import jsonschema
import kubernetes_validate
import pytest
import tritonclient.grpc.model_config_pb2 as triton
import yaml
from google.protobuf import text_format

from deploying import (
    BENCH,
    DIGEST,
    ECR,
    FACTS,
    IMAGE,
    ROLE,
    google,
    is_what_the_cluster_takes,
    pulled_from_ecr,
    read,
    rendered,
    vendored,
    with_payload,
)
from modelpack import deploy
from modelpack.deploy import sagemaker, serving, shipped, sizing
from modelpack.deploy.facts import Image, Wish
from modelpack.errors import StageError, UsageError
from modelpack.server.settings import Settings

GRPC = replace(FACTS, image=replace(IMAGE, grpc=True, platforms=("linux/amd64", "linux/arm64")))
BARE = replace(FACTS, image=Image("digits:latest"), bench=None, recipe="digits", builds="build")
HOSTILE = replace(
    FACTS, name="Ünî: 'x' # {{y}}", version="1.0+cpu\n---", bench=replace(BENCH, processor="a: b\n- c\u2028 # d \x1b"),
    inputs={'in "quoted"\\': {"shape": [3], "dtype": "int64"}}, outputs={"läbel": {"shape": [], "dtype": "bool"}},
)  # fmt: skip
SITUATIONS = {"measured": FACTS, "grpc": GRPC, "bare": BARE, "hostile": HOSTILE}


@pytest.fixture(params=SITUATIONS)
def facts(request):
    return SITUATIONS[request.param]


@pytest.mark.parametrize("target", deploy.TARGETS)
def test_the_same_facts_give_the_same_files(target, tmp_path, facts):
    facts = with_payload(tmp_path, facts)
    if target == "triton" and facts.name == HOSTILE.name:
        facts = replace(facts, name="plain")
    assert list(rendered(target, facts).items()) == list(rendered(target, facts).items())
    for name, content in rendered(target, facts).items():
        assert not name.startswith(("/", ".."))
        if isinstance(content, str):
            assert content.endswith("\n")
            assert "\r" not in content
            assert str(tmp_path) not in content


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
def test_manifests_are_what_the_cluster_takes(target, facts):
    files = rendered(target, facts)
    for name in files:
        if name.endswith(".yaml"):
            is_what_the_cluster_takes(read(files, name))
    for folder in {name.rpartition("/")[0] for name in files}:
        place = f"{folder}/" if folder else ""
        listed = read(files, f"{place}kustomization.yaml")
        named = listed["resources"] + [name for item in listed.get("configMapGenerator", ()) for name in item["files"]]
        there = {name for name in files if name.rpartition("/")[0] == folder} - {f"{place}kustomization.yaml"}
        assert {f"{place}{name}" for name in named} == there


@pytest.mark.parametrize("wrong", [
    ("deployment.yaml", lambda document: document["spec"]["template"]["spec"].update(terminationGracePeriod=3)),
    ("autoscaler.yaml", lambda document: document["spec"].update(minReplicas="two")),
    ("monitoring/servicemonitor.yaml", lambda document: document["spec"]["endpoints"][0].update(prot="http")),
])  # fmt: skip
def test_the_schemas_would_notice(wrong):
    name, damage = wrong
    document = read(rendered("kubernetes"), name)
    damage(document)
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        is_what_the_cluster_takes(document)


def pod(target="kubernetes", facts=FACTS):
    if target == "kserve":
        runtime = read(rendered(target, facts), "servingruntime.yaml")["spec"]
        return {**read(rendered(target, facts), "inferenceservice.yaml")["spec"]["predictor"], **runtime}
    return read(rendered(target, facts), "deployment.yaml")["spec"]["template"]["spec"]


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
def test_pods_are_sealed_and_stop_in_time(target):
    spec = pod(target)
    (container,) = spec["containers"]
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert (rights["runAsUser"], rights["runAsNonRoot"], rights["readOnlyRootFilesystem"]) == (65532, True, True)
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    env = {item["name"]: float(item["value"]) for item in container["env"]}
    assert spec["terminationGracePeriodSeconds"] > env["MODELPACK_DRAIN_DELAY"] + env["MODELPACK_DRAIN_TIMEOUT"]
    assert container["image"] == IMAGE.reference
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}


def test_the_server_reads_its_variables():
    found = Settings.read({**serving.environment(), "PORT": "1"})
    assert (found.drain_delay, found.drain_timeout) == (serving.DRAIN_DELAY, serving.DRAIN_TIMEOUT)
    usual = Settings.read({})
    assert (usual.port, usual.queue, usual.deadline, usual.max_batch) == (serving.PORT, 64, 60, 32)


def test_a_service_cannot_disturb_the_server():
    """Kubernetes would set MODELPACK_PORT to an address for a Service called `modelpack`."""
    assert pod(facts=replace(FACTS, name="modelpack"))["enableServiceLinks"] is False


def test_resources_come_from_the_bench():
    (container,) = pod()["containers"]
    needs = sizing.needs(FACTS)
    assert container["resources"]["limits"] == container["resources"]["requests"] == {
        "cpu": "2", "memory": f"{needs.memory}Mi"
    }  # fmt: skip
    assert needs.memory >= 112 + 64 + 40 * 1.25
    text = rendered("kubernetes")["deployment.yaml"]
    assert "32,000 rows a second on Some Processor" in text.replace("\n          # ", " ")
    assert "Not measured" in rendered("kubernetes", BARE)["deployment.yaml"]
    more = replace(FACTS, prepared=frozenset({"image"}), bench=replace(BENCH, growth=900 * 2**20))
    assert sizing.needs(more).memory > needs.memory + 1000


@pytest.mark.parametrize(
    ("cpus", "memory", "machine"), [(1, 100, "small"), (2, 600, "wide"), (1, 1600, "wide"), (3, 1, "")]
)
def test_the_smallest_machine_that_fits_is_taken(cpus, memory, machine):
    kinds = {"small": (1, 1024), "wide": (2, 4096)}
    wanted = sizing.Needs(cpus, memory, "", "", "")
    if machine:
        assert sizing.machine(kinds, wanted) == machine
    else:
        with pytest.raises(UsageError, match="no machine"):
            sizing.machine(kinds, wanted)


def test_grpc_has_a_port_everywhere_it_can():
    files = rendered("kubernetes", GRPC)
    assert [port["port"] for port in read(files, "service.yaml")["spec"]["ports"]] == [8080, 8081]
    assert [port["containerPort"] for port in pod(facts=GRPC)["containers"][0]["ports"]] == [8080, 8081]
    assert 8081 in [port["port"] for port in read(files, "network.yaml")["spec"]["ingress"][0]["ports"]]
    assert "nodeSelector" not in pod(facts=GRPC)
    assert [port["port"] for port in read(rendered("kubernetes"), "service.yaml")["spec"]["ports"]] == [8080]
    assert len(read(rendered("compose", GRPC), "compose.yaml")["services"]["model"]["ports"]) == 2


def test_selectors_meet():
    files = rendered("kubernetes")
    labels = read(files, "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        read(files, "deployment.yaml")["spec"]["selector"]["matchLabels"], read(files, "service.yaml")["spec"]["selector"],
        read(files, "disruption.yaml")["spec"]["selector"]["matchLabels"],
        read(files, "network.yaml")["spec"]["podSelector"]["matchLabels"],
        read(files, "monitoring/servicemonitor.yaml")["spec"]["selector"]["matchLabels"],
    ]  # fmt: skip
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert read(files, "autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == "digits"
    assert read(files, "network.yaml")["spec"]["egress"] == []


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
def test_kustomize_reads_them(target, tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which has kustomize inside")
    files = rendered(target)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in {(tmp_path / name).parent for name in files}:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(list(yaml.safe_load_all(done.stdout))) >= 2


def test_the_alerts_and_the_dashboard_are_the_servers():
    rules = read(rendered("kubernetes"), "monitoring/alerts.yaml")["spec"]["groups"]
    assert rules == yaml.safe_load(shipped.alerts())["groups"]
    assert rendered("compose")["prometheus/alerts.yml"] == shipped.alerts()
    assert rendered("compose")["grafana/modelpack.json"] == shipped.dashboard()


def test_compose_is_what_compose_reads(facts):
    files = rendered("compose", facts)
    document = read(files, "compose.yaml")
    jsonschema.Draft202012Validator(vendored("compose-spec")).validate(document)
    model = document["services"]["model"]
    assert (model["read_only"], model["cap_drop"]) == (True, ["ALL"])
    mounted = [volume.split(":")[0] for item in document["services"].values() for volume in item.get("volumes", ())]
    for place in mounted:
        if place.startswith("./"):
            assert any(name == place[2:] or name.startswith(f"{place[2:]}/") for name in files), place
    scrape = read(files, "prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert scrape == ["model:8080"]


@pytest.mark.docker
@pytest.mark.parametrize("facts", [FACTS, replace(FACTS, image=replace(IMAGE, reference="digits:1.0", named=False))])
def test_compose_itself_reads_them(facts, tmp_path):
    if shutil.which("docker-compose") is None:
        pytest.skip("needs Debian's docker-compose")
    for name, text in rendered("compose", facts).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(["docker-compose", "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    understood = yaml.safe_load(done.stdout)["services"]["model"]
    assert (understood["read_only"], understood["cap_drop"], understood["stop_grace_period"]) == (True, ["ALL"], "31s")


def test_compose_takes_no_strangers_image():
    """A name that nobody pushed is the engine's own; pulling it would bring somebody else's from a public registry."""
    local = read(
        rendered("compose", replace(FACTS, image=replace(IMAGE, reference=f"digits:1.0@{DIGEST}", named=False))),
        "compose.yaml",
    )
    assert (local["services"]["model"]["image"], local["services"]["model"]["pull_policy"]) == ("digits:1.0", "never")
    pushed = read(rendered("compose"), "compose.yaml")["services"]["model"]
    assert pushed["image"] == IMAGE.reference
    assert "pull_policy" not in pushed


def parsed(facts):
    return text_format.Parse(rendered("triton", facts)["digits/config.pbtxt"], triton.ModelConfig())


def test_triton_reads_its_repository(tmp_path):
    facts = with_payload(tmp_path)
    files = rendered("triton", facts)
    assert files["digits/1/model.onnx"] == facts.payload["model.onnx"]
    config = parsed(facts)
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "onnxruntime", 32)
    assert (config.input[0].name, config.input[0].data_type) == ("image", triton.TYPE_FP32)
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([1, 8, 8], [10])
    assert config.HasField("dynamic_batching")
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_triton_joins_rows_only_where_that_is_the_same(tmp_path):
    dynamic = with_payload(tmp_path, content=b"..DynamicQuantizeLinear..")
    config = parsed(dynamic)
    assert config.max_batch_size == 32
    assert not config.HasField("dynamic_batching")
    fixed = with_payload(tmp_path, replace(FACTS, outputs={"mean": {"shape": [1, "n"], "dtype": "float16"}}))
    config = parsed(fixed)
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (
        0,
        [-1, 1, 8, 8],
        [1, -1],
    )


def test_triton_has_tensors_without_sizes_and_odd_names(tmp_path):
    odd = {
        "inputs": {'a "b"\\': {"shape": ["n"], "dtype": "string"}},
        "outputs": {"ö": {"shape": ["n", 2], "dtype": "bool"}},
    }
    config = parsed(with_payload(tmp_path, replace(FACTS, **odd)))
    assert (config.input[0].name, list(config.input[0].dims), list(config.input[0].reshape.shape)) == (
        'a "b"\\',
        [1],
        [],
    )
    assert config.input[0].HasField("reshape")
    with pytest.raises(StageError, match="no type for complex64"):
        parsed(with_payload(tmp_path, replace(FACTS, outputs={"y": {"shape": [1], "dtype": "complex64"}})))
    prepared = rendered("triton", with_payload(tmp_path, replace(FACTS, prepared=frozenset({"image"}))))
    assert "of each image is not in Triton" in prepared["digits/config.pbtxt"]
    with pytest.raises(UsageError, match="is no name for a model's directory"):
        rendered("triton", FACTS, Wish("../up"))


def test_sagemakers_requests_are_what_its_client_takes():
    from botocore.session import Session
    from botocore.validate import ParamValidator

    service = Session().get_service_model("sagemaker")
    files = rendered("sagemaker")
    for name, operation in [
        ("model", "CreateModel"),
        ("endpoint-config", "CreateEndpointConfig"),
        ("endpoint", "CreateEndpoint"),
    ]:
        shape = service.operation_model(operation).input_shape
        report = ParamValidator().validate(read(files, f"{name}.json"), shape)
        assert not report.has_errors(), report.generate_report()
        for key, value in read(files, f"{name}.json").items():
            pattern = shape.members[key].metadata.get("pattern")
            assert pattern is None or re.fullmatch(pattern, value), (key, value)
    kinds = service.shape_for("ProductionVariantInstanceType").enum
    assert {name for table in sagemaker.MACHINES.values() for name in table} <= set(kinds)


def test_sagemakers_names_follow_what_they_name():
    from modelpack.deploy.sagemaker import requests

    one = requests(pulled_from_ecr(), Wish(role=ROLE))
    assert one == requests(pulled_from_ecr(), Wish(role=ROLE))
    other = requests(pulled_from_ecr(reference=f"{ECR}@sha256:{'2' * 64}"), Wish(role=ROLE))
    assert one.endpoint["EndpointName"] == other.endpoint["EndpointName"] == "digits"
    assert one.model["ModelName"] != other.model["ModelName"]
    assert one.config["EndpointConfigName"] != other.config["EndpointConfigName"]
    graviton = replace(pulled_from_ecr(), image=replace(pulled_from_ecr().image, platforms=("linux/arm64",)))
    assert "7g." in requests(graviton, Wish(role=ROLE)).config["ProductionVariants"][0]["InstanceType"]


@pytest.mark.parametrize(("role", "image", "message"), [
    ("", ECR, "in a role of yours"), ("me", ECR, "'me' is no role"), (ROLE, "ghcr.io/me/digits:1", "Amazon ECR alone"),
])  # fmt: skip
def test_sagemaker_says_what_it_lacks(role, image, message):
    with pytest.raises(UsageError, match=message):
        deploy.render("sagemaker", pulled_from_ecr(reference=image), Wish(role=role))


def test_vertex_takes_its_requests(facts):
    files = rendered("vertex", facts)
    for name, message in [("model", "UploadModelRequest"), ("deployment", "DeployModelRequest")]:
        schema = google("aiplatform.v1", f"GoogleCloudAiplatformV1{message}")
        jsonschema.Draft202012Validator(schema).validate(read(files, f"{name}.json"))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema).validate({**read(files, f"{name}.json"), "modell": {}})
    for kind in ("startup", "health", "liveness"):
        probe = read(files, "model.json")["model"]["containerSpec"][f"{kind}Probe"]
        assert probe["timeoutSeconds"] > probe["periodSeconds"]


def test_cloud_run_takes_its_service(facts):
    document = read(rendered("cloudrun", facts), "service.yaml")
    jsonschema.Draft202012Validator(google("run.v1", "Service")).validate(document)
    spec = document["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {item["name"]: float(item["value"]) for item in container["env"]}
    assert sum(env.values()) < 10
    assert container["resources"]["limits"]["cpu"] in {"1", "2", "4", "6", "8"}
    for kind in ("startup", "liveness"):
        assert container[f"{kind}Probe"]["timeoutSeconds"] <= container[f"{kind}Probe"]["periodSeconds"]
        assert container[f"{kind}Probe"]["periodSeconds"] * container[f"{kind}Probe"]["failureThreshold"] <= 240


def test_cloud_run_says_what_it_does_not_run():
    with pytest.raises(UsageError, match="runs linux/amd64"):
        rendered("cloudrun", replace(FACTS, image=replace(IMAGE, platforms=("linux/arm64",))))
    with pytest.raises(UsageError, match="8 processors"):
        rendered("cloudrun", replace(FACTS, bench=replace(BENCH, threads=9)))


def test_azure_has_its_keys(facts):
    """Azure's own schema is not in any small package: these are its keys, as far as they are used."""
    files = rendered("azureml", facts)
    endpoint, deployment = read(files, "endpoint.yml"), read(files, "deployment.yml")
    assert re.fullmatch(r"[a-z][-a-z0-9]{1,30}[a-z0-9]", endpoint["name"])
    assert endpoint.keys() == {"$schema", "name", "auth_mode"}
    assert deployment["endpoint_name"] == endpoint["name"]
    assert deployment.keys() == {
        "$schema", "name", "endpoint_name", "environment", "environment_variables", "instance_type", "instance_count",
        "request_settings", "liveness_probe", "readiness_probe", "tags",
    }  # fmt: skip
    routes = deployment["environment"]["inference_config"]
    assert {key: route["path"] for key, route in routes.items()} == {
        "liveness_route": "/livez", "readiness_route": "/readyz", "scoring_route": "/score"
    }  # fmt: skip
    assert all(isinstance(value, str) for value in deployment["environment_variables"].values())
    assert 5000 < deployment["request_settings"]["request_timeout_ms"] <= 180_000


@pytest.mark.parametrize("target", [name for name in deploy.TARGETS if name not in ("triton", "ci")])
def test_without_an_image_it_is_told_how_to_get_one(target):
    with pytest.raises(UsageError, match="no image yet") as caught:
        deploy.render(target, replace(FACTS, image=None), Wish(role=ROLE))
    assert "modelpack build digits --push REF" in caught.value.then


def test_an_unknown_target_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="no target is called 'kubernets'") as caught:
        deploy.render("kubernets", FACTS, Wish())
    assert caught.value.then == "did you mean 'kubernetes'?"
