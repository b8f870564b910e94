"""Azure Machine Learning: a managed online endpoint and its deployment.

Source: "CLI (v2) managed online deployment YAML schema"; "Use a custom container to deploy a model to an online
endpoint".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.deploy import names, serving, sizing
from modelpack.deploy.documents import said, to_yaml

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

GIB = 1024
MACHINES = {
    "Standard_F2s_v2": (2, 4 * GIB), "Standard_D2a_v4": (2, 8 * GIB), "Standard_F4s_v2": (4, 8 * GIB),
    "Standard_D4a_v4": (4, 16 * GIB), "Standard_F8s_v2": (8, 16 * GIB), "Standard_D8a_v4": (8, 32 * GIB),
    "Standard_F16s_v2": (16, 32 * GIB), "Standard_D16a_v4": (16, 64 * GIB),
}  # fmt: skip
_SCHEMAS = "https://azuremlschemas.azureedge.net/latest"
DEPLOYMENT = "blue"
_WAITING = 64
"""Requests that wait in the server, as many as its queue takes."""


def files(facts: Facts, wish: Wish) -> Files:
    """Give the endpoint and the deployment."""
    name = names.chosen(wish.name, facts.name, 32)
    endpoint = {
        "$schema": f"{_SCHEMAS}/managedOnlineEndpoint.schema.json",
        "name": said("Names are unique in a region: --name chooses another.", name),
        "auth_mode": "key",
    }
    head = (
        f"{facts.name} {facts.version} on Azure Machine Learning:\n"
        "  az ml online-endpoint create --file endpoint.yml\n"
        "  az ml online-deployment create --file deployment.yml --all-traffic\n"
        "An update is a second deployment (green) that gets the traffic when it is ready; going back gives it back:\n"
        f"  az ml online-endpoint update --name {name} --traffic green=100"
    )
    return {"endpoint.yml": to_yaml(head, endpoint), "deployment.yml": _deployment(facts, name)}


def _deployment(facts: Facts, name: str) -> str:
    needs = sizing.needs(facts)
    why = " ".join(text for text in (needs.why_cpus, needs.why_memory, needs.speed) if text)

    def route(path: str) -> dict[str, object]:
        return {"path": path, "port": serving.PORT}

    def probe(start: int, period: int, failures: int) -> dict[str, int]:
        return {"initial_delay": start, "period": period, "timeout": 2, "success_threshold": 1,
                "failure_threshold": failures}  # fmt: skip

    document = {
        "$schema": f"{_SCHEMAS}/managedOnlineDeployment.schema.json",
        "name": DEPLOYMENT,
        "endpoint_name": name,
        "environment": said(
            "The image has the model inside, so there is no `model` here. Its registry is one that the endpoint's "
            "identity may pull from.",
            {
                "image": facts.served.reference,
                "inference_config": {
                    "liveness_route": route(serving.ALIVE),
                    "readiness_route": route(serving.READY),
                    "scoring_route": route("/score"),
                },
            },
        ),
        "environment_variables": serving.environment(delay=1),
        "instance_type": said(why, sizing.machine(MACHINES, needs)),
        "instance_count": 1,
        "request_settings": {
            "request_timeout_ms": said("As long as the server gives a request; Azure gives five seconds.", 60000),
            "max_concurrent_requests_per_instance": said(
                "As many as the server lets wait. Azure's own limit is one, with which none would share a run.",
                _WAITING,
            ),
        },
        "liveness_probe": probe(10, 10, 30),
        "readiness_probe": probe(5, 5, 30),
        "tags": {"modelpack": facts.artifact[:12]},
    }
    return to_yaml("One deployment of the endpoint.", document)
