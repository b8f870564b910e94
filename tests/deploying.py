"""What the tests of `deploy` share: facts of a model, and the schemas that platforms read their files by."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from certificates import Authority
from image_support import free_port, program
from modelpack import canonical, deploy
from modelpack.artifact import Artifact, Kind
from modelpack.deploy import access
from modelpack.deploy.facts import Bench, Facts, Files, Image, Wish
from modelpack.store import Store

DIGEST = "sha256:" + "1a" * 32
ARTIFACT = "c0ffee" + "0" * 58
ROLE = "arn:aws:iam::123456789012:role/serving"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/digits:1.0"
IMAGE = Image(
    f"registry.example.com/team/digits:1.0@{DIGEST}", "digits:1.0", True, ("linux/amd64",), False, 150_000_000
)
BENCH = Bench(2, 8, 0.25, 32_000.0, 40 * 2**20, "Some Processor")
FACTS = Facts(
    "digits",
    "1.0",
    ARTIFACT,
    {"image": {"shape": ["batch", 1, 8, 8], "dtype": "float32", "range": [0.0, 1.0]}},
    {"scores": {"shape": ["batch", 10], "dtype": "float32"}},
    size=3 * 2**20,
    image=IMAGE,
    bench=BENCH,
    recipe="digits",
)
WISH = Wish(role=ROLE)

VERSIONS = ("1.29", "1.37")

NAMED = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "pattern": "^[a-z][-a-z0-9]*$"}},
}
CUSTOM = {
    "ServiceMonitor": {
        "required": ["selector", "endpoints"], "additionalProperties": False,
        "properties": {
            "selector": {"required": ["matchLabels"]},
            "endpoints": {"minItems": 1, "items": {
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"}, "path": {"type": "string"}, "scheme": {"enum": ["http", "https"]},
                    "interval": {"type": "string", "pattern": "^[0-9]+(s|m)$"},
                    "tlsConfig": {"additionalProperties": False, "properties": {
                        "serverName": {"type": "string"},
                        "ca": {"additionalProperties": False, "properties": {"secret": {
                            "required": ["key"], "additionalProperties": False,
                            "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
                        }}},
                    }},
                },
            }},
        },
    },
    "PrometheusRule": {
        "required": ["groups"], "additionalProperties": False,
        "properties": {"groups": {"minItems": 1, "items": {
            "required": ["name", "rules"], "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "rules": {"minItems": 1, "items": {
                "required": ["alert", "expr"], "additionalProperties": False,
                "properties": {
                    "alert": {"type": "string"}, "expr": {"type": "string"},
                    "for": {"type": "string", "pattern": "^[0-9]+(s|m|h)$"},
                    "labels": {"additionalProperties": {"type": "string"}},
                    "annotations": {"additionalProperties": {"type": "string"}},
                },
            }}},
        }}},
    },
    "ServingRuntime": {
        "required": ["containers"], "additionalProperties": False,
        "properties": {
            "annotations": {"additionalProperties": {"type": "string"}}, "multiModel": {"type": "boolean"},
            "protocolVersions": {"items": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}},
            "supportedModelFormats": {"items": {
                "required": ["name"], "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "version": {"type": "string"}, "autoSelect": {"type": "boolean"}},
            }},
            "nodeSelector": {"additionalProperties": {"type": "string"}},
            "containers": {"minItems": 1, "items": {"required": ["name", "image"]}}, "volumes": {"minItems": 1},
        },
    },
    "InferenceService": {
        "required": ["predictor"], "additionalProperties": False,
        "properties": {"predictor": {
            "required": ["model"], "additionalProperties": False,
            "properties": {
                "minReplicas": {"type": "integer"}, "maxReplicas": {"type": "integer"}, "scaleTarget": {"type": "integer"},
                "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
                "automountServiceAccountToken": {"type": "boolean"}, "terminationGracePeriodSeconds": {"type": "integer"},
                "model": {
                    "required": ["modelFormat"], "additionalProperties": False,
                    "properties": {"modelFormat": {"required": ["name"]}, "runtime": {"type": "string"},
                                   "protocolVersion": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}},
                },
            },
        }},
    },
}  # fmt: skip
"""The part of custom resources' definitions that these files rely on."""


def pulled_from_ecr(facts: Facts = FACTS, reference: str = f"{ECR}@{DIGEST}") -> Facts:
    assert facts.image is not None
    return replace(facts, image=replace(facts.image, reference=reference))


def with_payload(folder: Path, facts: Facts = FACTS, content: bytes = b"an onnx file") -> Facts:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return replace(facts, payload={"model.onnx": path})


def rendered(target: str, facts: Facts = FACTS, wish: Wish = WISH) -> Files:
    return deploy.render(target, pulled_from_ecr(facts) if target == "sagemaker" and facts.image else facts, wish)


def read(files: Files, name: str) -> Any:
    """Read one file as its platform does."""
    text = files[name]
    assert isinstance(text, str)
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def is_what_the_cluster_takes(document: dict[str, Any]) -> None:
    """Hold a manifest against the schemas of the cluster."""
    if document["kind"] == "Kustomization":
        return
    if document["kind"] in CUSTOM:
        jsonschema.validate(document["spec"], {"type": "object", **CUSTOM[document["kind"]]})
        jsonschema.validate(document["metadata"], NAMED)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)
    jsonschema.validate(document["metadata"], NAMED)


@functools.cache
def vendored(name: str) -> dict[str, Any]:
    """Give a schema of the JSON Schema Store, as check-jsonschema carries it."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


@functools.cache
def google(api: str, message: str) -> dict[str, Any]:
    """Give a message of a Google API as a JSON Schema that knows no other keys, from its discovery document."""
    folder = resources.files("googleapiclient") / "discovery_cache" / "documents"
    schemas = json.loads((folder / f"{api}.json").read_text("utf-8"))["schemas"]

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {
            key: plain(item) for key, item in value.items() if key not in ("format", "id", "required", "description")
        }
        if "$ref" in found:
            return {"$ref": f"#/$defs/{found['$ref']}"}
        if found.get("type") == "object" and "properties" in found:
            found["additionalProperties"] = False
        return found

    return {"$ref": f"#/$defs/{message}", "$defs": {name: plain(schema) for name, schema in schemas.items()}}


def plant_image(store: Store, model: Artifact, tag: str = "digits:1.0", **known: Any) -> Artifact:
    """Put an image artifact into a store, as `build` would, without the image."""
    summary = {"id": f"sha256:{'2b' * 32}", "digest": DIGEST, "tag": tag, "platform": "linux/amd64", "size": 9} | known
    work = {"stage": "build", "config": {"grpc": False, "tag": tag}, "model": model.id}
    with store.draft() as draft:
        (draft.path / "image.json").write_bytes(canonical.encode({"schema": 1, "tag": tag}))
        (draft.path / "image.tar").write_bytes(tag.encode())
        return store.commit(draft, Kind.IMAGE, work, {"results": {"image": summary}, "finished": tag})


def belongings(authority: Authority, folder: Path) -> Path:
    """Lay out what the user has for a guarded server: a certificate, its key, and the authority of clients."""
    authority.issue("host").install(folder / access.CHAIN, folder / access.KEY)
    shutil.copy(authority.path, folder / access.AUTHORITIES)
    return folder


def installed(wish: Wish, mine: Path, folder: Path) -> None:
    """Let the told commands put the user's files where Compose, whose files are in `folder`, looks for them."""
    for command in access.commands("compose", wish, str(folder)):
        subprocess.run(["bash", "-c", f"umask 077; {command}"], cwd=mine, check=True, capture_output=True)


def docker_run(document: dict[str, Any], folder: Path) -> list[str]:
    """Say what Compose, in a folder, would ask of the engine for the model, on the host's network: tests have no other."""
    service, secrets = document["services"]["model"], document.get("secrets", {})
    options = {
        "--user": service["user"],
        "--cpus": service["cpus"],
        "--memory": service["mem_limit"],
        "--memory-swap": service["mem_limit"],
        "--pids-limit": service["pids_limit"],
        "--stop-timeout": service["stop_grace_period"].removesuffix("s"),
        "--network": "host",
    }
    lists = {"--cap-drop": service["cap_drop"], "--security-opt": service["security_opt"]}
    lists["--volume"] = [
        f"{folder / secrets[shown['source']]['file']}:{shown['target']}:ro" for shown in service.get("secrets", ())
    ]
    lists["--env"] = [f"{name}={value}" for name, value in service["environment"].items()]
    words = [f"{name}={value}" for name, value in options.items()]
    words += [f"{name}={value}" for name, values in lists.items() for value in values]
    return [*words, *(["--read-only"] if service["read_only"] else [])]


def seen_by_prometheus(files: Files, folder: Path, address: str) -> dict[str, str]:
    """Let Debian's Prometheus scrape a server as the files say, and give the labels that it sees the server under."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Debian's prometheus")
    for name, text in files.items():
        if name.startswith("prometheus/"):
            assert isinstance(text, str)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text.replace("model:8080", address))
    config, port = folder / "prometheus" / "prometheus.yml", free_port()
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    found: list[dict[str, str]] = []

    def answered() -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?query=modelpack_ready==1", timeout=5
            ) as told:
                found[:] = [item["metric"] for item in json.load(told)["data"]["result"]]
        except OSError:
            return False
        return bool(found)

    with program(command, folder / "prometheus.log", answered, 60) as process:
        assert process is not None, (folder / "prometheus.log").read_text()
    return found[0]
