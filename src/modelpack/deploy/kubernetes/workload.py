"""What runs, and the address that it is reached at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import access, names, serving, sizing
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes import pod

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Wish


def labels(facts: Facts, name: str) -> dict[str, str]:
    """Give the labels that the cluster's own tools know."""
    version = names.value(facts.version)
    return {pod.APP: name, **({"app.kubernetes.io/version": version} if version else {})}


def deployment(facts: Facts, name: str, wish: Wish) -> str:
    """Write the Deployment."""
    image = facts.served
    speed = sizing.needs(facts).speed
    container = {
        "name": "model",
        "image": image.reference if image.pinned else said(UNPINNED, image.reference),
        "ports": pod.ports(facts, wish),
        "env": said("Together they fit the grace period above.", pod.environment(wish)),
        **pod.mounted(wish),
        **pod.probes(wish),
        "resources": said(speed, pod.resources(facts)) if speed else pod.resources(facts),
        "securityContext": pod.sealed(),
    }
    spec = {
        **pod.identity(),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **pod.placed(facts),
        "topologySpreadConstraints": said(
            "One node that fails shall not take every server with it.",
            [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {pod.APP: name}},
                }
            ],
        ),
        "containers": [container],
        **pod.volumes(wish),
    }
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(facts, name),
        "spec": {
            "selector": {"matchLabels": {pod.APP: name}},
            "revisionHistoryLimit": said("As many versions `kubectl rollout undo` can go back to.", 5),
            "strategy": said(
                "A new server is ready before an old one leaves.",
                {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            ),
            "template": {"metadata": _metadata(facts, ""), "spec": spec},
        },
    }
    document["spec"]["template"]["metadata"]["labels"] = labels(facts, name)  # type: ignore[index]
    head = "The servers. There is no `replicas`: the autoscaler counts them, and applying this again leaves its count."
    return to_yaml(head, document)


UNPINNED = "A name without @sha256:… may mean other bytes tomorrow."


def _metadata(facts: Facts, name: str) -> dict[str, Any]:
    annotations = {"modelpack/artifact": facts.artifact}
    if not name:
        return {"labels": {}, "annotations": annotations}
    return {"name": name, "labels": labels(facts, name), "annotations": annotations}


def service(facts: Facts, name: str, wish: Wish) -> str:
    """Write the Service."""
    scheme = access.scheme(wish)
    http = {"name": scheme, "port": serving.PORT, "targetPort": scheme, "appProtocol": scheme}
    spoken = scheme if wish.tls else "grpc"  # by TLS, gRPC is HTTP/2 like any other
    grpc = {"name": "grpc", "port": serving.GRPC_PORT, "targetPort": "grpc", "appProtocol": spoken}
    wary = said(
        "A gRPC connection stays with the server that it met first: for an even load put a mesh before this, or let "
        "clients find every server by a headless Service.",
        grpc,
    )
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {pod.APP: name}},
        "spec": {
            "selector": {pod.APP: name},
            "ports": [http, *([wary] if facts.served.grpc else [])],
        },
    }
    return to_yaml(f"Inside the cluster: {scheme}://{name}.NAMESPACE:{serving.PORT}/predict", document)
