"""Amazon SageMaker: what its three requests say, as files for its command line and for `modelpack deploy --apply`.

Names of models and configurations end in a hash of what they say, so that the same request twice is the same thing, and
another model never takes the place of one that an endpoint may go back to.

Source: Amazon SageMaker API reference, CreateModel, CreateEndpointConfig, CreateEndpoint; "Use your own inference code
with hosting services" of its developer guide.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.deploy import names, serving, sizing
from modelpack.deploy.documents import to_json
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.deploy.facts import Facts, Files, Wish

GIB = 1024
MACHINES = {
    "amd64": {
        "ml.c5.large": (2, 4 * GIB), "ml.m5.large": (2, 8 * GIB), "ml.r5.large": (2, 16 * GIB),
        "ml.c5.xlarge": (4, 8 * GIB), "ml.m5.xlarge": (4, 16 * GIB), "ml.r5.xlarge": (4, 32 * GIB),
        "ml.c5.2xlarge": (8, 16 * GIB), "ml.m5.2xlarge": (8, 32 * GIB), "ml.c5.4xlarge": (16, 32 * GIB),
        "ml.m5.4xlarge": (16, 64 * GIB),
    },
    "arm64": {
        "ml.c7g.large": (2, 4 * GIB), "ml.m6g.large": (2, 8 * GIB), "ml.c7g.xlarge": (4, 8 * GIB),
        "ml.m6g.xlarge": (4, 16 * GIB), "ml.c7g.2xlarge": (8, 16 * GIB), "ml.m6g.2xlarge": (8, 32 * GIB),
        "ml.c7g.4xlarge": (16, 32 * GIB),
    },
}  # fmt: skip
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[A-Za-z0-9+=,.@_/-]+")
_ECR = re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?")
_SHORT = 48
OWNER = "modelpack:endpoint"
"""Tag on everything that is made here: the endpoint that it is for."""


@dataclass(frozen=True)
class Requests:
    """The arguments of CreateModel, CreateEndpointConfig and CreateEndpoint."""

    model: Mapping[str, Any]
    config: Mapping[str, Any]
    endpoint: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return str(self.endpoint["EndpointName"])


def endpoint_name(model: str, wish: Wish) -> str:
    """Give the name that a model's endpoint has."""
    return names.chosen(wish.name, model, _SHORT)


def requests(facts: Facts, wish: Wish) -> Requests:
    """Say what is asked of SageMaker.

    Raises:
        UsageError: Without a role, without an image, or for a model too large for the machines that are known here.
    """
    image, name = facts.served, endpoint_name(facts.name, wish)
    if not _ROLE.fullmatch(wish.role):
        what = f"'{wish.role}' is no role" if wish.role else "SageMaker runs a model in a role of yours"
        raise UsageError(what, then="name it with --role arn:aws:iam::123456789012:role/NAME")
    if not _ECR.fullmatch(image.registry):
        raise UsageError(
            f"SageMaker pulls from Amazon ECR alone, not {image.name}",
            then="`modelpack build --push ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG`, and the same here as --image",
        )
    tags = [{"Key": OWNER, "Value": name}, {"Key": "modelpack:artifact", "Value": facts.artifact}]
    # SageMaker waits 30 seconds between SIGTERM and SIGKILL.
    container = {"Image": image.reference, "Environment": serving.environment(delay=1)}
    model = _named(
        "ModelName", name,
        # Network isolation: the server opens no connection of its own.
        {"ExecutionRoleArn": wish.role, "PrimaryContainer": container, "EnableNetworkIsolation": True, "Tags": tags},
    )  # fmt: skip
    kinds = MACHINES["arm64" if image.architectures == ("arm64",) else "amd64"]
    variant = {
        "VariantName": "all",
        "ModelName": model["ModelName"],
        "InitialInstanceCount": 1,
        "InstanceType": sizing.machine(kinds, sizing.needs(facts)),
        "ContainerStartupHealthCheckTimeoutInSeconds": 240,
    }
    config = _named("EndpointConfigName", name, {"ProductionVariants": [variant], "Tags": tags})
    endpoint = {"EndpointName": name, "EndpointConfigName": config["EndpointConfigName"], "Tags": tags[:1]}
    return Requests(model, config, endpoint)


def _named(key: str, prefix: str, request: dict[str, Any]) -> dict[str, Any]:
    """Name a request by what it says."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    return {key: f"{prefix}-{digest}", **request}


def files(facts: Facts, wish: Wish) -> Files:
    """Give the three requests, and how to send them."""
    asked, needs = requests(facts, wish), sizing.needs(facts)
    kind = asked.config["ProductionVariants"][0]["InstanceType"]
    return {
        "model.json": to_json(asked.model),
        "endpoint-config.json": to_json(asked.config),
        "endpoint.json": to_json(asked.endpoint),
        "README.md": _README.format(
            name=asked.name,
            title=f"{facts.name} {facts.version} on SageMaker",
            kind=kind,
            why="\n".join(f"* {text}" for text in (needs.why_cpus, needs.why_memory, needs.speed) if text),
            config=asked.config["EndpointConfigName"],
            image=facts.served.reference,
        ),
    }


_README = """\
# {title}

`modelpack deploy sagemaker --apply` does all of this, and waits. By hand, in this order:

```sh
aws sagemaker create-model --cli-input-json file://model.json
aws sagemaker create-endpoint-config --cli-input-json file://endpoint-config.json
aws sagemaker create-endpoint --cli-input-json file://endpoint.json
aws sagemaker wait endpoint-in-service --endpoint-name {name}
```

When the endpoint is there already, the last two become:

```sh
aws sagemaker update-endpoint --endpoint-name {name} --endpoint-config-name {config}
```

Ask it:

```sh
aws sagemaker-runtime invoke-endpoint --endpoint-name {name} --content-type application/json \\
  --cli-binary-format raw-in-base64-out --body '{{"instances": [...]}}' answer.json
```

SageMaker pulls `{image}`, which must lie in Amazon ECR in the endpoint's region, in a role that may read it there.

Why `{kind}`:

{why}
"""
