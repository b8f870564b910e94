"""The listener for gRPC beside the one for HTTP, over the same service, under the same limits."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc

from ..faults import StartError
from . import health, inference, reflection, schema
from .calls import Calls

if TYPE_CHECKING:
    from ..service import Service
    from ..settings import Settings
    from ..tls import Tls

_PLAIN = 1  # a bit for each algorithm that messages may be compressed by; the lowest is none
_log = logging.getLogger("modelpack.server")


class Listener:
    """A gRPC server in the running event loop.

    Args:
        service: What answers.
    """

    def __init__(self, service: Service) -> None:
        self._settings = settings = service.settings
        self._calls = calls = Calls(service)
        self._credentials = _credentials(service.tls) if service.tls else None
        self._server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.max_connections)
        self._server.add_generic_rpc_handlers((
            calls.handler(schema.INFERENCE, inference.METHODS),
            calls.handler(schema.HEALTH, health.METHODS),
            calls.handler(schema.REFLECTION, reflection.METHODS),
            calls.handler(schema.REFLECTION, reflection.METHODS, alias=reflection.OLD),
        ))  # fmt: skip

    async def start(self, port: int) -> None:
        """Listen.

        Args:
            port: 0 takes a free one, which the log names.

        Raises:
            StartError: When the port cannot be had.
        """
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(f"{host}:{port}")
            else:
                port = self._server.add_secure_port(f"{host}:{port}", self._credentials)
        except RuntimeError:
            raise StartError(f"cannot listen on {host}:{port} for gRPC: MODELPACK_GRPC_PORT chooses another") from None
        await self._server.start()
        _log.info("serving gRPC on %s:%d", host, port)

    async def stop(self, seconds: float) -> None:
        """Take no new calls, end those that only wait for their clients, and let the others finish in this time."""
        stopping = asyncio.create_task(self._server.stop(seconds + 1.0))
        await asyncio.sleep(0)
        self._calls.end(self._calls.idle)
        await asyncio.wait({stopping}, timeout=seconds)
        self._calls.end(self._calls.running)
        await stopping


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Secure connections as HTTP's are, but demand a client's certificate in the handshake where clients need one."""
    used = tls.pem

    def configured() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(used.key, used.chain)], used.clients)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        if used is tls.pem:
            return None
        used = tls.pem
        return configured()

    return grpc.dynamic_ssl_server_credentials(configured(), renewed, used.clients is not None)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_head),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_connections),
        ("grpc.compression_enabled_algorithms_bitset", _PLAIN),
        ("grpc.server_handshake_timeout_ms", int(settings.head_timeout * 1000)),
        ("grpc.max_connection_idle_ms", settings.idle_timeout * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]
