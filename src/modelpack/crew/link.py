"""A host that serves, as the one that leads sees it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from modelpack.crew.lines import raised
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelpack.artifact import Artifact
    from modelpack.crew.team import Station
    from modelpack.crew.wire import Wire


@dataclass
class Link:
    """The connection to a host that serves, and which host that is.

    Attributes:
        wire: The connection.
        name: Its address.
        number: Which of the hosts it is, from 1; the one that leads is 0.
        near: This host's address and interface on the way there.
    """

    wire: Wire
    name: str
    number: int
    near: tuple[str, str]
    step: int = 0

    def send_step(self, step: str, artifacts: Mapping[str, Artifact], station: Station) -> None:
        """Send a step and what it reads, and wait until the other host has it all.

        Raises:
            StageError: When it does not take it.
        """
        self.step += 1
        manifests = {name: item.manifest.encode().decode() for name, item in artifacts.items()}
        theirs = replace(station, opens=False, address=self.name, network="")
        self.wire.send(step=step, number=self.step, artifacts=manifests, station=asdict(theirs))
        lacks = self._answer("lacks")
        for artifact in {item.id: item for item in artifacts.values()}.values():
            if artifact.id in lacks:
                for file in artifact.manifest.files:
                    self.wire.give(artifact.path / file.name)
        self._answer("ready")

    def _answer(self, wanted: str) -> Any:
        while True:
            body = self.wire.receive()
            if wanted in body:
                return body[wanted]
            if "error" in body:
                raise raised(body["error"], self.name)

    def told(self) -> Iterator[dict[str, Any]]:
        """Give what the host said about the step since the last time.

        Raises:
            StageError: When it is gone.
        """
        yield from (body for body in self.wire.arrived() if body.get("number") == self.step)

    def release(self) -> None:
        """End the host's part of the step; a host that is gone has ended it itself."""
        with contextlib.suppress(StageError):
            self.wire.send(stop=self.step)

    def dismiss(self, status: str, why: str) -> None:
        """Tell the host how the run ended."""
        with contextlib.suppress(StageError):
            self.wire.send(end=status, why=why)
        self.wire.close()
