"""A small balancer for TCP, as an orchestrator has one: new connections go to servers that say they are ready.

Usage: ``python benchmarks/serving_balancer.py PORT SERVER_PORT...``
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys

EVERY = 0.05
"""Seconds between two looks at a server's readiness."""


class Balancer:
    """Passes bytes on, in both directions, and never looks at them.

    Args:
        ports: Of the servers.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ready = dict.fromkeys(ports, False)
        self._turns = itertools.count()

    async def watch(self, port: int) -> None:
        """Look again and again whether a server is ready."""
        while True:
            self._ready[port] = await _ready(port)
            await asyncio.sleep(EVERY)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect one client to one server that is ready."""
        ports = [port for port, ready in self._ready.items() if ready]
        if not ports:
            writer.transport.abort()
            return
        there = await asyncio.open_connection("127.0.0.1", ports[next(self._turns) % len(ports)])
        async with asyncio.TaskGroup() as both:
            both.create_task(_pass(reader, there[1]))
            both.create_task(_pass(there[0], writer))


async def _ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = await reader.readline()
        writer.close()
        return status.startswith(b"HTTP/1.1 200")
    return False


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what one side sends until it ends, then end the other."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main() -> None:
    """Listen, and say so."""
    listening, *ports = map(int, sys.argv[1:])
    balancer = Balancer(ports)
    async with asyncio.TaskGroup() as group:
        for port in ports:
            group.create_task(balancer.watch(port))
        server = await asyncio.start_server(balancer.serve, "127.0.0.1", listening)
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
