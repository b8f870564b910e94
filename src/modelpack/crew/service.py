"""A host that serves: it takes part in the steps that the host that leads sends, with its own recipe, code and data."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.artifact import Manifest
from modelpack.crew.lead import LOOK
from modelpack.crew.lines import described
from modelpack.crew.muster import HELLO, facts
from modelpack.crew.network import interface
from modelpack.crew.order import Order
from modelpack.crew.team import Station, Team
from modelpack.crew.wire import PROTOCOL, Wire
from modelpack.errors import MissingError, ModelpackError, StageError, StoreError, UsageError
from modelpack.events import Emit, Note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.artifact import Artifact
    from modelpack.planning import Desk

_AGAIN = 0.5
"""Seconds between two tries to reach the host that leads."""
_FOREVER = 10.0 * 365 * 24 * 3600


def join(address: str, port: int, wait: float, *, busy: bool) -> Wire:
    """Reach the host that leads.

    Args:
        address: Its address.
        port: Its port.
        wait: Seconds to wait for it.
        busy: Whether the address is one of this machine, where some program has the port already.

    Raises:
        UsageError: When another program answers.
        MissingError: When nobody does.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            link = socket.create_connection((address, port), timeout=max(1.0, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise MissingError(
                    f"no host answered in {wait:g} seconds: {(error.strerror or str(error)).lower()}",
                    where=f"{address}:{port}",
                    then="type the same command on the host of this address, and see that its port can be reached",
                ) from error
            time.sleep(_AGAIN)
    wire = Wire(link, f"the host that leads ({address})", wait)
    try:
        greeting = wire.receive(HELLO)
    except StageError:
        greeting = {}
    if greeting.get("modelpack") != PROTOCOL:
        wire.close()
        what = "the port is in use by another program" if busy else "what answers there is no modelpack that leads"
        raise UsageError(what, where=f"{address}:{port}", then="give --rdzv another port, the same on every host")
    return wire


def serve(desk: Desk, wire: Wire, emit: Emit) -> None:
    """Take part until the run ends.

    Raises:
        UsageError: When this host has another recipe, other data or other versions than the one that leads.
        StageError: When the run fails, or the host that leads is gone.
    """
    wire.send(facts=facts(desk), host=socket.gethostname())
    while "welcome" not in (body := wire.receive()):
        if "refused" in body:
            raise UsageError(str(body["refused"]), where=wire.peer)
    place = int(body["welcome"])
    emit(Note(desk.recipe.name, f"takes part as host {place + 1} of {desk.crew.nnodes}; {wire.peer} has the result"))
    service = _Service(desk, wire, emit, place)
    while "end" not in (body := wire.receive(_FOREVER)):
        if "step" in body:
            service.step(body)
    if body["end"] != "succeeded":
        raise StageError(f"the run {body['end']}: {body.get('why', '')}", where=wire.peer)


@dataclass
class _Service:
    """What this host does for the one that leads."""

    desk: Desk
    wire: Wire
    emit: Emit
    place: int

    def step(self, body: Mapping[str, Any]) -> None:
        """Take part in one step, until the host that leads ends it."""
        number = int(body["number"])
        with self.desk.store.draft() as between:
            team = Team(between.path.resolve())
            try:
                order, station = self._prepared(body, team)
                team.start(order, station, self.desk.crew.nproc)
                self.wire.send(ready=number)
            except (ModelpackError, OSError) as error:
                self.wire.send(error=described(error))
                raise
            self.emit(Note(str(body["step"]), "trains here too"))
            try:
                self._until_stopped(team, number)
            finally:
                team.stop()

    def _until_stopped(self, team: Team, number: int) -> None:
        told = False
        while True:
            for rank, line in team.lines:
                if "event" not in line and "print" not in line:
                    self.wire.send(number=number, rank=rank, line=line)
            code = team.ended()
            if code is not None and not told:
                told = True
                failure = team.failure() if code else {}
                printed = list(team.printed()) if code else []
                self.wire.send(number=number, ended=code, failure=failure, printed=printed)
            if any(body.get("stop") == number for body in self.wire.arrived()):
                return
            time.sleep(LOOK)

    def _prepared(self, body: Mapping[str, Any], team: Team) -> tuple[Order, Station]:
        recipe, crew = self.desk.recipe, self.desk.crew
        step = next((item for item in recipe.steps if item.id == body["step"]), None)
        if step is None or not crew.takes(step):
            raise StageError(
                f"asks for a step that is none of those that train: {body['step']!r}", where=self.wire.peer
            )
        reads = set(step.inputs)
        given = body.get("artifacts")
        if not isinstance(given, dict) or set(given) != reads:
            raise StageError("sent other artifacts than the step reads", where=self.wire.peer)
        try:
            station = Station(**body["station"])
        except TypeError as error:
            raise StageError("sent no place to meet", where=self.wire.peer) from error
        found = self._artifacts({name: Manifest.decode(text.encode(), self.wire.peer) for name, text in given.items()})
        order = Order(
            path=str(recipe.path.resolve()),
            text=recipe.text,
            overrides=recipe.overrides,
            step=step.id,
            artifacts={name: str(item.path.resolve()) for name, item in found.items()},
            out="",
            scratch="",
            shared=str(self.desk.store.shared.resolve()),
            notes=str(team.notes),
            device=self.desk.device,
            first=self.place * crew.nproc,
            size=crew.size,
            wait=crew.wait,
        )
        near = str(self.wire.link.getsockname()[0])
        return order, Station(**{**vars(station), "address": near, "network": interface(near), "opens": False})

    def _artifacts(self, manifests: Mapping[str, Manifest]) -> dict[str, Artifact]:
        """Find the artifacts in this host's store, and ask for those that it lacks."""
        known: dict[str, Artifact] = {}
        for manifest in manifests.values():
            with suppress(UsageError):
                known[manifest.id] = self.desk.store.get(manifest.id)
        wanted = {manifest.id: manifest for manifest in manifests.values() if manifest.id not in known}
        self.wire.send(lacks=list(wanted))
        for identity, manifest in wanted.items():
            known[identity] = self._received(manifest)
        return {name: known[manifest.id] for name, manifest in manifests.items()}

    def _received(self, manifest: Manifest) -> Artifact:
        """Write what comes into the store, once its hashes are those of the manifest."""
        with self.desk.store.draft() as draft:
            for file in manifest.files:
                path = draft.path / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                if self.wire.take(path, file.size) != file.sha256:
                    raise StoreError(
                        "what came has another hash than it should", where=f"{self.wire.peer}: {file.name}"
                    )
            return self.desk.store.commit(draft, manifest.kind, manifest.work, manifest.record)
