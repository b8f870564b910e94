"""The workers of this host for one step: started by torchrun, listened to, and ended whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from modelpack.crew.lines import Reader
from modelpack.numerics.elastic import Charge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelpack.crew.order import Order

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STOPPING = 12.0
"""Seconds in which the agent ends its workers, the last of them by force."""


@dataclass(frozen=True)
class Station:
    """Where a host stands among those that share a step.

    Attributes:
        hosts: How many there are.
        meeting: ``ADDRESS:PORT`` where their agents meet.
        opens: Whether this host opens it.
        address: Where the others reach this host.
        name: What belongs together calls itself alike.
        restarts: How often the workers may be started anew.
        network: The interface through which this host reaches the others; empty when there are none.
    """

    hosts: int
    meeting: str
    opens: bool
    address: str
    name: str
    restarts: int
    network: str


@dataclass
class Team:
    """The workers of this host.

    Attributes:
        folder: Directory of its own, for the order, the workers' lines and their logs.
        lines: What the workers say.
    """

    folder: Path
    lines: Reader = field(init=False)
    _agent: subprocess.Popen[str] | None = None
    _said: IO[str] | None = None

    def __post_init__(self) -> None:
        self.lines = Reader(self.notes)
        self.notes.mkdir()

    @property
    def notes(self) -> Path:
        """Directory of the workers' lines."""
        return self.folder / "notes"

    def start(self, order: Order, station: Station, workers: int) -> None:
        """Start the agent, which starts the workers.

        Args:
            order: What the workers do.
            station: Where this host stands among the others.
            workers: How many of them this host has.
        """
        (self.folder / "order.json").write_text(order.encode())
        charge = Charge(
            command=(sys.executable, "-P", "-m", "modelpack.crew.worker", str(self.folder / "order.json")),
            workers=workers,
            hosts=station.hosts,
            meeting=station.meeting,
            opens=station.opens,
            address=station.address,
            name=station.name,
            restarts=station.restarts,
            patience=round(order.wait),
            logs=str(self.folder / "logs"),
            parent=os.getpid(),
        )
        (self.folder / "charge.json").write_text(charge.encode())
        self._said = (self.folder / "agent.out").open("w+")
        with (self.folder / "agent.err").open("w") as errors:
            self._agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "modelpack.numerics.elastic", str(self.folder / "charge.json")],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=errors,
                env=_environment(workers, station.network),
                text=True,
                start_new_session=True,  # Ctrl-C is for the command, which ends its workers in order
            )

    def ended(self) -> int | None:
        """Give the agent's exit code when it has ended."""
        return self._agent.poll() if self._agent is not None else None

    def failure(self) -> dict[str, Any]:
        """Give what the agent said about how the workers ended; empty when it was killed."""
        assert self._said is not None
        self._said.seek(0)
        told = [line for line in self._said.read().splitlines() if line.startswith("{")]
        return dict(json.loads(told[-1])) if told else {}

    def printed(self, most: int = 3) -> Iterator[str]:
        """Give the last lines that the workers' libraries, or the agent, wrote: a crash in C++ is told only there."""
        for path in [*sorted(self.folder.glob("logs/**/stderr.log")), self.folder / "agent.err"]:
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            yield from lines[-most:]

    def stop(self) -> None:
        """End the agent and the workers."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.send_signal(signal.SIGTERM)
            try:
                self._agent.wait(_STOPPING)
            except subprocess.TimeoutExpired:
                self._agent.kill()  # the workers notice, and end themselves
                self._agent.wait()
        if self._said is not None:
            self._said.close()
        self.lines.close()


def _environment(workers: int, network: str) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    threads = dict.fromkeys(_THREADS, share)
    # The working directory may hold files that shadow libraries: workers find modules where this process does.
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    chosen = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # its hints are for who wrote the loop
    if network:
        chosen |= {"GLOO_SOCKET_IFNAME": network, "NCCL_SOCKET_IFNAME": network}
    return {**chosen, **threads, **os.environ, **paths}
