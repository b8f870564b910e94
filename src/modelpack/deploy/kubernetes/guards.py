"""How many servers there are, how many may leave at once, and who may reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import serving
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes.pod import APP

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts


def autoscaler(name: str) -> str:
    """Write the HorizontalPodAutoscaler."""
    busy = {"type": "Utilization", "averageUtilization": 70}
    document = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": said("Two, so that one may leave.", 2),
            "maxReplicas": 10,
            "metrics": said(
                "A model's time is processor time. From here on requests wait for each other.",
                [{"type": "Resource", "resource": {"name": "cpu", "target": busy}}],
            ),
            "behavior": said(
                "Fewer servers only after five quiet minutes.",
                {"scaleDown": {"stabilizationWindowSeconds": 300}},
            ),
        },
    }
    return to_yaml("How many servers there are. It needs the cluster's metrics-server.", document)


def disruption(name: str) -> str:
    """Write the PodDisruptionBudget."""
    document = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {APP: name}}},
    }
    return to_yaml("While nodes are drained, one server leaves at a time.", document)


def network(facts: Facts, name: str) -> str:
    """Write the NetworkPolicy."""
    ports: list[dict[str, Any]] = [{"protocol": "TCP", "port": serving.PORT}]
    grpc = [{"protocol": "TCP", "port": serving.GRPC_PORT}] if facts.served.grpc else []
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {
            "podSelector": {"matchLabels": {APP: name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                said(
                    "Pods of the same namespace. Add the ingress controller's namespace for clients from outside.",
                    {"from": [{"podSelector": {}}], "ports": [*ports, *grpc]},
                ),
                said(
                    "Prometheus, which reads /metrics; `monitoring` is the namespace that it usually runs in.",
                    {
                        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                        "ports": ports,
                    },
                ),
            ],
            "egress": said("Nothing: the server opens no connection of its own.", []),
        },
    }
    return to_yaml("Who may reach the servers, and whom they may reach.", document)
