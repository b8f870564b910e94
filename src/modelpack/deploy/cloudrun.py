"""Google Cloud Run: a service, in the form of Knative that Cloud Run reads.

Source: Cloud Run, "Cloud Run YAML reference"; "Container runtime contract".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import access, names, serving, sizing
from modelpack.deploy.documents import said, to_yaml
from modelpack.errors import UsageError

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

LEAST = {1: 512, 2: 512, 4: 2048, 6: 4096, 8: 4096}
"""Processors that Cloud Run gives → the least MiB that it gives with them."""
_STOP = 8
"""Seconds for work in flight: ten pass between SIGTERM and SIGKILL, one of them is the drain delay."""


def files(facts: Facts, wish: Wish) -> Files:
    """Give the service.

    Raises:
        UsageError: For an image of another processor, or a model too large.
    """
    name, image = names.chosen(wish.name, facts.name, 49), facts.served
    if image.platforms and "linux/amd64" not in image.platforms:
        raise UsageError(
            f"Cloud Run runs linux/amd64, this image is for {', '.join(image.platforms)}",
            then="build it with --platform linux/amd64",
        )
    secrets, variables = access.mounts(wish), serving.environment(1, _STOP) | access.environment(wish)
    container = {
        "image": image.reference,
        "ports": [{"name": "http1", "containerPort": serving.PORT}],
        "env": said(
            "Ten seconds pass between SIGTERM and the end.",
            [{"name": key, "value": value} for key, value in variables.items()],
        ),
        **({"volumeMounts": [{"name": item.name, "mountPath": item.folder} for item in secrets]} if secrets else {}),
        "resources": {"limits": _limits(facts)},
        "startupProbe": _probe(serving.STARTED, 2, 60),
        "livenessProbe": _probe(serving.ALIVE, 10, 3),
    }
    document = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "annotations": {
                "run.googleapis.com/ingress": said("Nobody from outside; `all` opens it.", "internal"),
                "modelpack/artifact": facts.artifact,
            },
        },
        "spec": {
            "template": {
                "metadata": {
                    "annotations": {
                        "autoscaling.knative.dev/maxScale": "10",
                        "run.googleapis.com/startup-cpu-boost": "true",
                    }
                },
                "spec": {
                    "containerConcurrency": said(
                        "As many as the server lets wait: requests that wait share a run.", 64
                    ),
                    "timeoutSeconds": said("As long as the server gives a request.", 60),
                    "containers": [container],
                    **({"volumes": said(_TOKENS_WHY, [_volume(item) for item in secrets])} if secrets else {}),
                },
            }
        },
    }
    head = f"{facts.name} {facts.version} on Cloud Run: gcloud run services replace service.yaml --region REGION"
    return {"service.yaml": to_yaml(head, document)}


def _volume(mount: access.Mount) -> dict[str, Any]:
    versions = [{"key": "latest", "path": part} for part in mount.files.values()]
    return {"name": mount.name, "secret": {"secretName": mount.secret, "items": versions}}


_TOKENS_WHY = (
    "From Secret Manager; another version counts from the next revision on. Where Cloud Run itself checks who asks "
    "(IAM), its token goes into `X-Serverless-Authorization`, and `Authorization` is the server's."
)


def _limits(facts: Facts) -> dict[str, Any]:
    needs = sizing.needs(facts)
    cpus = next((number for number in LEAST if number >= needs.cpus), None)
    if cpus is None or needs.memory > 32 * 1024:
        raise UsageError(
            f"Cloud Run gives 8 processors and 32 GiB at most; this needs {needs.cpus} and {needs.memory} MiB",
            then="measure with fewer threads in the recipe's `bench`",
        )
    least = f" Cloud Run gives {LEAST[cpus]} MiB at least." if LEAST[cpus] > needs.memory else ""
    return {
        "cpu": said(" ".join(text for text in (needs.why_cpus, needs.speed) if text), str(cpus)),
        "memory": said(needs.why_memory + least, f"{max(needs.memory, LEAST[cpus])}Mi"),
    }


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    asked = {"path": path, "port": serving.PORT}
    return {"httpGet": asked, "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": failures}
