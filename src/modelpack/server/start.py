"""From settings to a listening socket, and to one process or several that serve what comes in by it."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import socket
from typing import TYPE_CHECKING, Any

from . import logs
from .board import BACKLOG
from .faults import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .settings import Settings

_SPARE = 128  # files that are no connections
_log = logging.getLogger("modelpack.server")


def start(settings: Settings, card: Mapping[str, Any] | None = None) -> int:
    """Serve until a signal.

    Args:
        settings: Where, with how many workers, and within which limits.
        card: The model card; None reads `card.json`, where there is one.

    Returns:
        0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        StartError: When the model cannot be served, the port cannot be had, or workers die again and again.
    """
    logs.begin(settings)
    _make_room(settings)
    with _signals_waiting(), _listen(settings.host, settings.port) as listener:
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        scheme = "https" if settings.secured else "http"
        _log.info("serving %s on %s://%s:%d", settings.model, scheme, shown, port)
        if settings.workers == 1:
            from .launch import launch

            return launch(settings, listener, card)
        from .workers import Workers

        return Workers(settings, listener, card).run()


@contextlib.contextmanager
def _signals_waiting() -> Iterator[None]:
    """Keep what is asked by signals until somebody listens: the first process of a container would never hear it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_room(settings: Settings) -> None:
    """Let a process have open what its connections need: where it may not, clients wait and nobody tells them why."""
    wanted = settings.max_connections * (1 if settings.grpc_port is None else 2) + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning(
            "a process may have %d files open here, too few for MODELPACK_MAX_CONNECTIONS=%d: raise the limit to %d",
            most, settings.max_connections, wanted,
        )  # fmt: skip


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {host}:{port}: {error}; --port chooses another") from None
