"""Protocols as values: tables of routes, and the way from a path to what answers there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .exchange import JSON, failure
from .faults import StartError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from .exchange import Response
    from .faults import Fault, Unproven
    from .model import Model
    from .request import Request
    from .service import Service
    from .settings import Settings

    Answering = Callable[[Service, Request], Awaitable[Response]]

_PART = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Described:
    """A route in the words of OpenAPI: an operation, and the schemas that it points to."""

    operation: Mapping[str, Any]
    schemas: Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """One row of a protocol's table.

    Attributes:
        method: `GET` (which answers `HEAD` too) or another.
        path: With named parts: `/v1/models/{model}:predict`. A part is never empty and holds no slash.
        answer: Takes the service and the request, whose `parts` are filled.
        name: What metrics call it; the path when empty.
        open: Whether it is answered without a token.
        locked: What answers whoever shows none, from the request and the fault; the protocol words the fault when None.
        media: The forms of its answers; none leaves it out of the description.
        describe: Describes it in OpenAPI for one model, under the server's limits, with a prefix for the names of its
            schemas; None takes the first line of the docstring of `answer`.
    """

    method: str
    path: str
    answer: Answering
    name: str = ""
    open: bool = False
    locked: Callable[[Request, Unproven], Response] | None = None
    media: tuple[str, ...] = (JSON,)
    describe: Callable[[Model, Settings, str], Described] | None = None


@dataclass(frozen=True)
class Protocol:
    """One way to talk to the server.

    Attributes:
        name: What metrics call it.
        routes: Its table.
        fail: How it words a fault.
        first: Whether its paths are its own where others have them too, because the operator named them.
    """

    name: str
    routes: tuple[Route, ...]
    fail: Callable[[Fault], Response] = failure
    first: bool = False


@dataclass
class Place:
    """What is at one path, by method."""

    protocol: Protocol
    name: str
    open: bool = False
    locked: Callable[[Request, Unproven], Response] | None = None
    methods: dict[str, Answering] = field(default_factory=dict)

    @property
    def allow(self) -> str:
        """The methods that the path knows, for an `Allow` header."""
        return ", ".join([*self.methods, *(["HEAD"] if "GET" in self.methods else []), "OPTIONS"])


class Router:
    """All tables together; plain paths are looked up, paths with named parts are tried by their number of slashes.

    Raises:
        StartError: When two protocols claim one path.
    """

    def __init__(self, protocols: Iterable[Protocol]) -> None:
        self._plain: dict[str, Place] = {}
        self._named: dict[int, list[tuple[int, re.Pattern[str], Place]]] = {}
        places: dict[str, Place] = {}
        for protocol in sorted(protocols, key=lambda each: not each.first):
            for route in protocol.routes:
                shape = _PART.sub("{}", route.path)
                place = places.setdefault(shape, Place(protocol, route.name or route.path, route.open, route.locked))
                if place.protocol.first and not protocol.first:
                    continue
                if place.protocol is not protocol or route.method in place.methods:
                    raise StartError(
                        f"{route.method} {route.path} belongs to {place.protocol.name} and to {protocol.name}"
                    )
                place.methods[route.method] = route.answer
                if len(place.methods) == 1:
                    self._add(route.path, place)

    def _add(self, path: str, place: Place) -> None:
        if not _PART.search(path):
            self._plain[path] = place
            return
        pieces = _PART.split(path)  # texts and names, in turn
        pattern = "".join(f"(?P<{piece}>[^/]+)" if at % 2 else re.escape(piece) for at, piece in enumerate(pieces))
        tried = self._named.setdefault(path.count("/"), [])
        tried.append((len(_PART.sub("", path)), re.compile(pattern), place))
        tried.sort(key=lambda entry: -entry[0])  # `{model}:predict` goes before `{model}`

    def find(self, path: str) -> tuple[Place | None, dict[str, str]]:
        """Give what is at a path, and the values of its named parts."""
        if place := self._plain.get(path):
            return place, {}
        for _, pattern, place in self._named.get(path.count("/"), ()):
            if found := pattern.fullmatch(path):
                return place, found.groupdict()
        return None, {}
