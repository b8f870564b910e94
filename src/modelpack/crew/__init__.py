"""Training by more than one process, on one host or several.

The command keeps the store, the plan and every other stage. A step that trains runs in workers that torchrun starts
(`team`, `worker`), while the command listens to them (`lead`). With several hosts, the command runs on each: the host
that leads gathers the others (`muster`), sends them each such step with what it reads, and they serve (`service`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelpack.crew.network import free_port
from modelpack.crew.team import Station
from modelpack.device import cuda_devices
from modelpack.errors import MissingError, UsageError
from modelpack.stage import Assumption

if TYPE_CHECKING:
    from modelpack.crew.link import Link
    from modelpack.recipe import Recipe
    from modelpack.steps import Step


@dataclass
class Crew:
    """The processes that share the work of training.

    Attributes:
        nproc: How many there are on each host.
        nnodes: How many hosts there are.
        rdzv: ``HOST:PORT`` where the hosts meet; empty for one host.
        restarts: How often the workers of a step may be started anew when one is lost.
        wait: Seconds that hosts and workers wait for each other.
        links: On the host that leads: its connections to the others.
    """

    nproc: int = 1
    nnodes: int = 1
    rdzv: str = ""
    restarts: int = 3
    wait: float = 600.0
    links: list[Link] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Count all workers."""
        return self.nproc * self.nnodes

    def station(self) -> Station:
        """Say where this host stands, as the one that leads, for one step."""
        address, network = self.links[0].near if self.links else ("127.0.0.1", "")
        # Port 0: with one host, only torch's own agent needs to know it.
        port = free_port(address) if self.links else 0
        return Station(self.nnodes, f"{address}:{port}", True, address, secrets.token_hex(8), self.restarts, network)

    def takes(self, step: Step) -> bool:
        """Whether a step is one that the workers do."""
        return self.size > 1 and step.stage.trains(step.config)

    def assumed(self, step: Step) -> tuple[Assumption, ...]:
        """Give what a step's result depends on: sums over processes are rounded in another order."""
        if not self.takes(step):
            return ()
        return (
            Assumption("processes", str(self.size), f"trained by {self.size} processes, each with a part of a batch"),
        )

    def expect(self, recipe: Recipe, device: str) -> None:
        """Check that the crew makes sense for a recipe.

        Raises:
            UsageError: When the options contradict each other or the recipe.
            MissingError: When there are too few CUDA devices.
        """
        if self.nnodes > 1 and not self.rdzv:
            raise UsageError(
                f"--nnodes {self.nnodes} needs a place where the hosts meet",
                then="say --rdzv HOST:PORT, the same on every host: the address of one of them, and a free port there",
            )
        if self.nnodes == 1 and self.rdzv:
            raise UsageError("--rdzv is for several hosts", then="say --nnodes 2 or more as well, or leave it out")
        if self.size == 1:
            return
        steps = [step for step in recipe.steps if self.takes(step)]
        if not steps:
            raise UsageError(
                f"no step of the recipe trains: there is nothing for {self.size} processes to share",
                then="leave --nproc and --nnodes out",
            )
        for step in steps:
            name = str(getattr(step.config, "data", ""))
            rows = recipe.data[name].config.batch if name in recipe.data else self.size
            if rows < self.size:
                raise UsageError(
                    f"{self.size} processes cannot share batches of {rows} rows",
                    where=f"data '{name}' of step '{step.id}'",
                    then=f"give it `batch: {self.size}` or more, or use fewer processes",
                )
        kind, _, number = device.partition(":")
        if kind == "cuda" and int(number or 0) + self.nproc > cuda_devices():
            raise MissingError(
                f"{self.nproc} processes from {device} on need a CUDA device each: this machine has {cuda_devices()}",
                then="use fewer --nproc, or --device cpu",
            )
