"""Vertex AI: the bodies of its two requests, and how to send them.

Source: Vertex AI REST reference, `models.upload` and `endpoints.deployModel`; "Custom container requirements for
prediction".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import names, serving, sizing
from modelpack.deploy.documents import to_json

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

GIB = 1024
MACHINES = {
    f"n2-{family}-{cpus}": (cpus, cpus * GIB * each)
    for cpus in (2, 4, 8, 16)
    for family, each in (("standard", 4), ("highmem", 8))
}
PREDICT, HEALTH = "/predict", "/health"


def files(facts: Facts, wish: Wish) -> Files:
    """Give the model, its deployment, and the commands."""
    name, needs = names.chosen(wish.name, facts.name), sizing.needs(facts)
    kind = sizing.machine(MACHINES, needs)
    why = "\n".join(f"* {text}" for text in (needs.why_cpus, needs.why_memory, needs.speed) if text)
    return {
        "model.json": to_json(_model(facts, name)),
        "deployment.json": to_json(_deployment(name, kind)),
        "README.md": _README.format(
            title=f"{facts.name} {facts.version} on Vertex AI",
            name=name,
            kind=kind,
            why=why,
            image=facts.served.reference,
        ),
    }


def _model(facts: Facts, name: str) -> dict[str, Any]:
    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        asked = {"path": path, "port": serving.PORT}
        # Unlike Kubernetes, Vertex AI wants the time-out to be longer than the period.
        return {
            "httpGet": asked,
            "periodSeconds": period,
            "timeoutSeconds": period + 1,
            "failureThreshold": failures,
        }

    container = {
        "imageUri": facts.served.reference,
        "ports": [{"containerPort": serving.PORT}],
        "predictRoute": PREDICT,
        "healthRoute": HEALTH,
        "startupProbe": probe(serving.STARTED, 2, 60),
        "healthProbe": probe(serving.READY, 5, 2),
        "livenessProbe": probe(serving.ALIVE, 10, 3),
    }
    labels = {"modelpack": facts.artifact[:12]}
    model = {"displayName": name, "versionDescription": f"{facts.name} {facts.version}", "labels": labels}
    return {"model": {**model, "containerSpec": container}}


def _deployment(name: str, kind: str) -> dict[str, Any]:
    busy = {"metricName": "aiplatform.googleapis.com/prediction/online/cpu/utilization", "target": 70}
    resources = {
        "machineSpec": {"machineType": kind},
        "minReplicaCount": 1,
        "maxReplicaCount": 10,
        "autoscalingMetricSpecs": [busy],
    }
    deployed = {"model": "MODEL", "displayName": name, "dedicatedResources": resources}
    return {"deployedModel": deployed, "trafficSplit": {"0": 100}}


_README = """\
# {title}

Set `PROJECT` and `REGION`; `{image}` must lie in Artifact Registry, where Vertex AI may read it.

```sh
API="https://$REGION-aiplatform.googleapis.com/v1" PLACE="projects/$PROJECT/locations/$REGION"
TOKEN="authorization: Bearer $(gcloud auth print-access-token)" JSON="content-type: application/json"

curl -X POST "$API/$PLACE/models:upload" -H "$TOKEN" -H "$JSON" --data @model.json
curl -X POST "$API/$PLACE/endpoints" -H "$TOKEN" -H "$JSON" --data '{{"displayName": "{name}"}}'
```

Both answer with an operation, which names what it makes. With `MODEL` and `ENDPOINT` set to those names
(`projects/…/models/1`, `projects/…/endpoints/2`):

```sh
sed "s|MODEL|$MODEL|" deployment.json | curl -X POST "$API/$ENDPOINT:deployModel" -H "$TOKEN" -H "$JSON" --data @-
curl -X POST "$API/$ENDPOINT:predict" -H "$TOKEN" -H "$JSON" --data '{{"instances": [...]}}'
```

`"0"` in `trafficSplit` means the model that is deployed by this request. To go back, send all traffic to the one before
(`gcloud ai endpoints update $ENDPOINT --traffic-split=ID=100`) and undeploy this one.

Why `{kind}`:

{why}
"""
