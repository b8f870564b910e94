"""The server as every platform runs it: its ports, probes, environment, and how long it takes to stop."""

from __future__ import annotations

USER = 65532
PORT, GRPC_PORT = 8080, 8081
STARTED, ALIVE, READY, METRICS = "/startupz", "/livez", "/readyz", "/metrics"
DRAIN_DELAY, DRAIN_TIMEOUT = 5, 25
"""Seconds after SIGTERM in which new work is still served, and that work in flight gets after that."""
MARGIN = 5
"""Seconds between the server's own end and the platform's SIGKILL."""
GRACE = DRAIN_DELAY + DRAIN_TIMEOUT + MARGIN


def environment(delay: float = DRAIN_DELAY, timeout: int = DRAIN_TIMEOUT) -> dict[str, str]:
    """Give the variables that make the server stop within the time that the platform leaves it."""
    return {"MODELPACK_DRAIN_DELAY": str(delay), "MODELPACK_DRAIN_TIMEOUT": str(timeout)}
