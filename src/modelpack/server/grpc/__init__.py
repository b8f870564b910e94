"""gRPC beside HTTP: the Open Inference Protocol v2, health and reflection, over the same service.

Nothing in here is imported before a port for gRPC is set, since an image may lack grpcio.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..faults import StartError

if TYPE_CHECKING:
    from ..service import Service
    from .listener import Listener


async def listen(service: Service, port: int) -> Listener:
    """Serve gRPC on a port; see `Listener`.

    Raises:
        StartError: When grpcio is missing, or the port cannot be had.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters is in the server's own log
    try:
        from .listener import Listener
    except ImportError as error:
        raise StartError(
            f"a port for gRPC is set, and this server has no grpcio ({error}): build the image with 'grpc: true', "
            "install modelpack[grpc], or leave MODELPACK_GRPC_PORT out"
        ) from None
    listener = Listener(service)
    await listener.start(port)
    return listener
