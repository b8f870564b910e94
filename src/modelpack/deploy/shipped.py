"""The dashboard and the alerts that the server ships, word for word."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent.parent / "server" / "monitoring"


def dashboard() -> str:
    """Give the dashboard for Grafana, JSON."""
    return (_FOLDER / "dashboard.json").read_text("utf-8")


def alerts() -> str:
    """Give the alerts for Prometheus, YAML."""
    return (_FOLDER / "alerts.yml").read_text("utf-8")
