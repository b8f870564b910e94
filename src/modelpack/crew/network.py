"""Addresses: where hosts meet, which of them a name is, and through which interface they reach each other."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

from modelpack.errors import UsageError

_SIOCGIFADDR = 0x8915
"""Linux's request for an interface's address (netdevice(7))."""


def split(meeting: str) -> tuple[str, int]:
    """Split ``HOST:PORT``.

    >>> split("10.0.0.1:29400")
    ('10.0.0.1', 29400)

    Raises:
        UsageError: When it is not of that form.
    """
    host, colon, port = meeting.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(
            f"'{meeting}' names no port of a host", where="--rdzv", then="write HOST:PORT, as 10.0.0.1:29400"
        )
    return host.strip("[]"), int(port)


def resolve(meeting: str) -> tuple[str, int]:
    """Give the address and port that ``HOST:PORT`` means.

    Raises:
        UsageError: When it is not of that form, or nobody knows the host.
    """
    host, port = split(meeting)
    try:
        found = socket.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise UsageError(
            f"the host '{host}' cannot be found: {told}", where="--rdzv", then="give its address"
        ) from error
    address = str(found[0][4][0])
    if address == "0.0.0.0":  # noqa: S104 - recognized in order to be refused
        raise UsageError(
            "every host would take 0.0.0.0 for itself", where="--rdzv", then="give the address of the host that leads"
        )
    return address, port


def opened(address: str, port: int) -> tuple[socket.socket | None, bool]:
    """Listen at an address and port.

    Returns:
        The listener, None when another host has the address or another program the port; whether it is this host's.

    Raises:
        UsageError: When the system refuses.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return None, error.errno == errno.EADDRINUSE
        raise UsageError(f"cannot listen there: {error.strerror}", where=f"{address}:{port}") from error
    return listener, True


def free_port(address: str) -> int:
    """Find a port that nobody uses at one of this host's addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.bind((address, 0))
        return int(trial.getsockname()[1])


def interface(address: str) -> str:
    """Name the network interface that has an address; empty when the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
