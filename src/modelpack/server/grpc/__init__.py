"""gRPC beside HTTP: the Open Inference Protocol v2, health and reflection, over the same service.

Nothing else of the server imports this room before a port for gRPC is set, since its image may lack grpcio.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from ..faults import StartError

if TYPE_CHECKING:
    from ..service import Service
    from .listener import Listener


def check() -> None:
    """Look for what gRPC needs.

    Raises:
        StartError: When it is not here.
    """
    if importlib.util.find_spec("grpc") is None:
        raise StartError(
            "a port for gRPC is set, and this server has no grpcio: build the image with 'grpc: true', "
            "install modelpack[grpc], or take MODELPACK_GRPC_PORT away"
        )


async def listen(service: Service, port: int) -> Listener:
    """Serve gRPC on a port; see `Listener`.

    Raises:
        StartError: When grpcio is missing, or the port cannot be had.
    """
    check()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the server's own log says what matters
    from .listener import Listener

    listener = Listener(service)
    await listener.start(port)
    return listener
