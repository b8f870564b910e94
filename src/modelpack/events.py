"""What happens during a run, as frozen values handed to one `emit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened; `step` is the id of the step concerned, empty for the run itself."""

    step: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the event as one JSON object, named by its class in snake case."""
        name = "".join(f"_{char.lower()}" if char.isupper() else char for char in type(self).__name__)
        return {"event": name.lstrip("_"), **asdict(self)}


Emit = Callable[[Event], None]


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins."""

    recipe: str = ""
    run: int = 0
    steps: tuple[str, ...] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class StepStarted(Event):
    """A step begins to execute."""

    stage: str = ""
    fingerprint: str = ""
    why: str = ""


@dataclass(frozen=True)
class StepFinished(Event):
    """A step's artifact is in the store; `cached` when nothing was executed."""

    stage: str = ""
    artifact: str = ""
    cached: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress(Event):
    """Work inside a step: `done` of `total` units (0 when unknown)."""

    label: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Metric(Event):
    """A figure was measured."""

    name: str = ""
    value: Any = None


@dataclass(frozen=True)
class Note(Event):
    """Something the user may want to know; `warning` when it deserves attention."""

    text: str = ""
    warning: bool = False


@dataclass(frozen=True)
class BudgetChecked(Event):
    """One line of the budget was compared with its measurement."""

    name: str = ""
    limit: str = ""
    measured: float = 0.0
    met: bool = True


@dataclass(frozen=True)
class RunFinished(Event):
    """A run ended; `executed` counts the steps that really ran."""

    recipe: str = ""
    run: int = 0
    status: str = "succeeded"
    executed: int = 0
    seconds: float = 0.0


def decode(body: Mapping[str, Any]) -> Event:
    """Make an event of what `Event.to_json` gave.

    Raises:
        ValueError: When there is no such event, or it has other facts.
    """
    facts = dict(body)
    name = str(facts.pop("event", ""))
    kind = next((kind for kind in Event.__subclasses__() if kind().to_json()["event"] == name), None)
    if kind is None or not set(facts) <= {field.name for field in fields(kind)}:
        raise ValueError(f"no event is called '{name}' and says {', '.join(facts)}")
    return kind(**facts)
