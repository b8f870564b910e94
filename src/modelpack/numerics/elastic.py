"""torchrun for the workers of one host: ``python -m modelpack.numerics.elastic FILE``.

The agent is torch's own (``torch.distributed.launcher``): it meets the agents of the other hosts, starts the workers,
and when one of them ends badly, it starts all of them anew, on every host. FILE holds a `Charge` as JSON; how the
workers ended badly for the last time is told in one JSON line on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LOOK = 0.3
_GRACE = 10.0
_STOPPING = 5


@dataclass(frozen=True)
class Charge:
    """What an agent is in charge of.

    Attributes:
        command: What a worker runs; the agent's process id is appended.
        workers: How many of them this host has.
        hosts: How many hosts take part.
        meeting: ``ADDRESS:PORT`` where their agents meet; port 0 for a host alone.
        opens: Whether this agent opens that meeting.
        address: Where the other hosts reach this one.
        name: What agents that belong together call their work.
        restarts: How often the workers may be started anew.
        patience: Seconds to wait for the other agents.
        logs: Directory for what the workers print.
        parent: Process whose end ends the agent.
    """

    command: tuple[str, ...]
    workers: int
    hosts: int
    meeting: str
    opens: bool
    address: str
    name: str
    restarts: int
    patience: int
    logs: str
    parent: int

    def encode(self) -> str:
        """Give it as JSON."""
        return json.dumps(asdict(self))


def end_with(parent: int, how: signal.Signals) -> None:
    """Send this process a signal when its parent has ended, however that ended, and kill it if that does not help."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os.kill(os.getpid(), how)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Keep the workers going until they have ended."""
    body = json.loads(Path(sys.argv[1]).read_text())
    charge = Charge(**{**body, "command": tuple(body["command"])})
    end_with(charge.parent, signal.SIGTERM)
    # Workers find each other anew after each restart: what those before them left behind could only mislead them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=charge.hosts,
        max_nodes=charge.hosts,
        nproc_per_node=charge.workers,
        run_id=charge.name,
        rdzv_backend="c10d",
        rdzv_endpoint=charge.meeting,
        rdzv_configs={"is_host": charge.opens, "timeout": charge.patience, "join_timeout": charge.patience},
        local_addr=charge.address,
        max_restarts=charge.restarts,
        logs_specs=DefaultLogsSpecs(charge.logs, redirects=Std.ALL),
        shutdown_timeout=_STOPPING,
    )
    try:
        elastic_launch(config, charge.command[0])(*charge.command[1:], str(os.getpid()))
    except ChildFailedError as error:
        _tell({"workers": {failure.local_rank: failure.exitcode for failure in error.failures.values()}})
        return 1
    except SignalException:
        return 143
    except Exception as error:  # noqa: BLE001 - whatever torch's agent raises ends the training, and is told
        _tell({"agent": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return 1
    return 0


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
