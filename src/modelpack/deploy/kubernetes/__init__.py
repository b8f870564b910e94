"""Kubernetes: a server that is rolled out, scaled and stopped without a lost request, and what watches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.deploy import names
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes import guards, monitoring, workload

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish


def files(facts: Facts, wish: Wish) -> Files:
    """Give the manifests and their kustomization; what needs the Prometheus operator has a kustomization of its own."""
    name = names.chosen(wish.name, facts.name)
    parts = {
        "deployment.yaml": workload.deployment(facts, name, wish),
        "service.yaml": workload.service(facts, name, wish),
        "autoscaler.yaml": guards.autoscaler(name),
        "disruption.yaml": guards.disruption(name),
        "network.yaml": guards.network(facts, name),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": said("monitoring/ is apart: a cluster without the Prometheus operator refuses it.", [*parts]),
    }
    head = f"{facts.name} {facts.version} in one cluster: kubectl apply -k . --namespace NAMESPACE"
    return {**parts, "kustomization.yaml": to_yaml(head, kustomization), **monitoring.files(name, wish)}
