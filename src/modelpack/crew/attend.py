"""The part that this host has in a run: all of it, or the lead, or the service of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from modelpack.crew.muster import Muster, facts
from modelpack.crew.network import opened, resolve
from modelpack.crew.service import join, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelpack.events import Emit
    from modelpack.planning import Desk

T = TypeVar("T")


def attend(desk: Desk, emit: Emit, work: Callable[[], T]) -> T | None:
    """Do the work with this host's crew; None on a host that served another one.

    The host that has the address of ``--rdzv`` leads. A second command on the same machine serves the first.

    Args:
        desk: What is run, and its crew.
        emit: Receives every event of a host that serves.
        work: Runs it, on the host that leads.

    Raises:
        UsageError: When the hosts cannot meet there, or do not fit each other.
        MissingError: When one of them does not come.
        StageError: On a host that serves: when the run fails.
    """
    crew = desk.crew
    if crew.nnodes == 1:
        return work()
    address, port = resolve(crew.rdzv)
    listener, ours = opened(address, port)
    if listener is None:
        wire = join(address, port, crew.wait, busy=ours)
        try:
            with desk.store.locked():
                serve(desk, wire, emit)
        finally:
            wire.close()
        return None
    muster = Muster(listener, crew)
    status, why = "failed", ""
    try:
        crew.links = muster.gather(facts(desk))
        result = work()
        status = "succeeded"
    except KeyboardInterrupt:
        status, why = "was interrupted", "by its user"
        raise
    except BaseException as error:
        why = str(error)
        raise
    finally:
        for link in crew.links:
            link.dismiss(status, why)
        muster.close()
    return result
