"""What the Prometheus operator scrapes, what wakes somebody up, and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from modelpack.deploy import serving, shipped
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes.pod import APP

if TYPE_CHECKING:
    from modelpack.deploy.facts import Files


def files(name: str) -> Files:
    """Give ServiceMonitor, PrometheusRule and dashboard with a kustomization of their own."""
    dashboard = {
        "name": f"{name}-dashboard",
        "files": ["dashboard.json"],
        "options": {
            "disableNameSuffixHash": True,
            "labels": said("Grafana's sidecar loads config maps with this label.", {"grafana_dashboard": "1"}),
        },
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["servicemonitor.yaml", "alerts.yaml"],
        "configMapGenerator": [dashboard],
    }
    head = "For a cluster with the Prometheus operator: kubectl apply -k monitoring --namespace NAMESPACE"
    found = {
        "kustomization.yaml": to_yaml(head, kustomization),
        "servicemonitor.yaml": _monitor(name),
        "alerts.yaml": _rules(name),
        "dashboard.json": shipped.dashboard(),
    }
    return {f"monitoring/{file}": text for file, text in found.items()}


def _monitor(name: str) -> str:
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {
            "selector": {"matchLabels": {APP: name}},
            "endpoints": [
                {
                    "port": "http",
                    "path": serving.METRICS,
                    "interval": "15s",
                }
            ],
        },
    }
    return to_yaml(
        "What Prometheus scrapes. An operator with a `serviceMonitorSelector` wants its labels here as well (of Helm's "
        "kube-prometheus-stack: `release`).",
        document,
    )


def _rules(name: str) -> str:
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {"groups": yaml.safe_load(shipped.alerts())["groups"]},
    }
    return to_yaml("The server's own alerts, as `docker run --rm IMAGE --monitoring alerts` prints them.", document)
