"""What the Prometheus operator scrapes, what wakes somebody up, and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from modelpack.deploy import access, serving, shipped
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes.pod import APP

if TYPE_CHECKING:
    from modelpack.deploy.facts import Files, Wish


def files(name: str, wish: Wish) -> Files:
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
        "servicemonitor.yaml": _monitor(name, wish),
        "alerts.yaml": _rules(name),
        "dashboard.json": shipped.dashboard(),
    }
    return {f"monitoring/{file}": text for file, text in found.items()}


def _monitor(name: str, wish: Wish) -> str:
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {
            "selector": {"matchLabels": {APP: name}},
            "endpoints": [
                {
                    "port": access.scheme(wish),
                    "path": serving.METRICS,
                    "interval": "15s",
                    **_secured(name, wish),
                }
            ],
        },
    }
    return to_yaml(
        "What Prometheus scrapes. An operator with a `serviceMonitorSelector` wants its labels here as well (of Helm's "
        "kube-prometheus-stack: `release`).",
        document,
    )


def _secured(name: str, wish: Wish) -> dict[str, Any]:
    if not wish.tls:
        return {}
    known = {"secret": {"name": wish.tls, "key": access.CHAIN}}
    trusted = {"ca": known, "serverName": said("Pods are scraped by their addresses, which no certificate has.", name)}
    why = "The server's own certificate vouches for it, and must name the Service."
    return {"scheme": "https", "tlsConfig": said(why, trusted)}


def _rules(name: str) -> str:
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "labels": {APP: name}},
        "spec": {"groups": yaml.safe_load(shipped.alerts())["groups"]},
    }
    return to_yaml("The server's own alerts, as `docker run --rm IMAGE --monitoring alerts` prints them.", document)
