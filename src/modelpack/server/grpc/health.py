"""Whether the server takes work, as Kubernetes' probes and gRPC's load balancers ask it.

Source: grpc/grpc, `doc/health-checking.md`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..faults import Unknown
from . import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from ..service import Service
    from .calls import Call

_SERVICES = ("", schema.INFERENCE)
_PAUSE = 0.1  # seconds


def _status(service: Service, name: str) -> str:
    if name not in _SERVICES:
        return "SERVICE_UNKNOWN"
    return "SERVING" if service.ready else "NOT_SERVING"


async def check(service: Service, request: Any, _call: Call) -> Message:
    """Say whether the server, or the service of a name, takes work."""
    status = _status(service, request.service)
    if status == "SERVICE_UNKNOWN":
        raise Unknown(f"no service {request.service[:80]!r}: this server has {schema.INFERENCE!r}")
    return _said(status)


async def watch(service: Service, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Message]:
    """Say it now, and whenever it changes."""
    async for request in requests:
        said = ""
        while True:
            if (status := _status(service, request.service)) != said:
                yield _said(said := status)
            with call.idle():
                await asyncio.sleep(_PAUSE)


def _said(status: str) -> Message:
    response: Message = schema.message("grpc.health.v1.HealthCheckResponse")(status=status)
    return response


METHODS: dict[str, Any] = {"Check": check, "Watch": watch}
