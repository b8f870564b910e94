"""The host that leads gathers the others, and sends them each step that they take part in.

::

    leads → serves   {"modelpack": 1}                                  at once, to whoever comes
    serves → leads   {"facts": {…}, "host": name}
    leads → serves   {"welcome": number}  or  {"refused": why}
    leads → serves   {"step": id, "number": n, "artifacts": {step: manifest}, "station": {…}}
    serves → leads   {"lacks": [id, …]}                                then the files of each, in its manifest's order
    serves → leads   {"ready": n}  or  {"error": {…}}
    serves → leads   {"number": n, "rank": r, "line": {…}}             what a worker says
    serves → leads   {"number": n, "ended": code, "failure": {…}, "printed": […]}
    leads → serves   {"stop": n}                                       after every step
    leads → serves   {"end": status, "why": text}
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from modelpack import __version__, canonical
from modelpack.crew.link import Link
from modelpack.crew.network import interface
from modelpack.crew.wire import PROTOCOL, Wire
from modelpack.errors import MissingError, ModelpackError, StageError, UsageError, listed
from modelpack.usercode import minor_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.crew import Crew
    from modelpack.planning import Desk

HELLO = 10.0
"""Seconds in which a host says who it is."""


def facts(desk: Desk) -> dict[str, str]:
    """Say what hosts must have in common, by what to call it."""
    crew, recipe = desk.crew, desk.recipe
    common = {
        "the recipe": canonical.digest(recipe.text),
        "--set or --until": canonical.digest([recipe.overrides, [step.id for step in recipe.steps]]),
        "--nproc": str(crew.nproc),
        "--nnodes": str(crew.nnodes),
        "the kind of device": desk.device.partition(":")[0],
        "the version of modelpack": __version__,
        "the version of torch": minor_version("torch"),
    }
    for step in recipe.steps:
        common[f"the files or code of '{step.id}'"] = canonical.digest(canonical.plain(step.config))
        if crew.takes(step):
            common |= {f"data '{name}'": desk.digest(name) for name in step.data}
    return common


class Muster:
    """The place where hosts gather: answers everyone at once, and takes them one by one."""

    def __init__(self, listener: socket.socket, crew: Crew) -> None:
        self._listener, self._crew = listener, crew
        self._came: queue.Queue[Wire] = queue.Queue()
        self._guests: list[Wire] = []
        self._complete = False
        threading.Thread(target=self._greet, daemon=True).start()

    def _greet(self) -> None:
        while True:
            try:
                link, (address, _) = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(ModelpackError, OSError):
                wire = Wire(link, address, self._crew.wait)
                self._guests.append(wire)
                wire.send(modelpack=PROTOCOL)
                if self._complete:
                    wire.send(refused=f"all {self._crew.nnodes} hosts are there already")
                    wire.close()
                else:
                    self._came.put(wire)

    def gather(self, common: Mapping[str, str]) -> list[Link]:
        """Wait for the other hosts.

        Raises:
            UsageError: When one has another recipe, other data or other versions.
            MissingError: When they do not come.
        """
        crew, found = self._crew, list[tuple[str, Wire]]()
        deadline = time.monotonic() + crew.wait
        while len(found) < crew.nnodes - 1:
            try:
                wire = self._came.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise MissingError(
                    f"{crew.nnodes - 1 - len(found)} of {crew.nnodes} hosts did not come in {crew.wait:g} seconds",
                    where=crew.rdzv,
                    then="type the same command on each of them, and see that they reach this address and port",
                ) from None
            try:
                theirs = _facts(wire.receive(HELLO))
            except StageError:
                wire.close()  # a stranger, or a host that gave up
                continue
            differing = [name for name, value in common.items() if theirs.get(name) != value]
            if differing:
                what = f"the hosts differ in {listed(differing, 5)}"
                wire.send(refused=what)
                raise UsageError(what, where=wire.peer, then="the same command needs the same files on every host")
            found.append((wire.peer, wire))
        self._complete = True
        links = []
        for number, (name, wire) in enumerate(sorted(found, key=lambda item: item[0]), 1):
            wire.send(welcome=number)
            address = str(wire.link.getsockname()[0])
            links.append(Link(wire, name, number, (address, interface(address))))
        return links

    def close(self) -> None:
        """Stop listening, and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # without it, who waits in accept() would take one more
        self._listener.close()
        for wire in self._guests:
            wire.close()


def _facts(body: Mapping[str, Any]) -> dict[str, str]:
    told = body.get("facts")
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise StageError("it said nothing that can be understood")
    return told
