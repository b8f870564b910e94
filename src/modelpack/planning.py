"""What a run would do: each step's identity, and whether its result is in the store already.

Inputs enter a fingerprint by the *id* of their artifact, so a step behind one that has yet to run has no fingerprint
yet; that is said, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.crew import Crew
from modelpack.device import machine
from modelpack.quantities import MISSING
from modelpack.usercode import minor_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.artifact import Artifact
    from modelpack.data import DataSource
    from modelpack.recipe import Recipe
    from modelpack.record import Run
    from modelpack.stage import Assumption
    from modelpack.steps import Step
    from modelpack.store import Store


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        step: The step.
        work: What is asked for, whose hash is the fingerprint; None while an input is yet to be made.
        artifact: Its result, when the store has it.
        why: Why it will run; empty when it is cached.
        assumptions: What it takes from the surroundings.
    """

    step: Step
    work: Mapping[str, Any] | None
    artifact: Artifact | None
    why: str
    assumptions: tuple[Assumption, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of the work, or empty while it is not known."""
        return canonical.digest(self.work) if self.work is not None else ""


@dataclass
class Desk:
    """What planning and running look at for one recipe on one store: opened data, and each data entry's digest once.

    Attributes:
        recipe: The recipe.
        store: Where results are looked for.
        device: ``cpu`` or ``cuda:N``.
        force: Ids of steps that run even when their result is there.
        last: The newest run of the recipe, to say what changed since.
        crew: The processes that share what trains.
    """

    recipe: Recipe
    store: Store
    device: str
    force: frozenset[str] = frozenset()
    last: Run | None = None
    crew: Crew = field(default_factory=Crew)
    _opened: dict[str, DataSource] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)

    def data(self, name: str) -> DataSource:
        """Open a data entry once."""
        if name not in self._opened:
            self._opened[name] = self.recipe.data[name].open(self.recipe.inputs)
        return self._opened[name]

    def digest(self, name: str) -> str:
        """Identify a data entry's rows once."""
        if name not in self._digests:
            self._digests[name] = self.data(name).digest()
        return self._digests[name]

    def _work(self, step: Step, made: Mapping[str, Artifact], assumed: Sequence[Assumption]) -> dict[str, Any] | None:
        """Say what a step asks for, given what it assumes; None when something it reads is not made yet."""
        if any(name not in made for name in step.inputs):
            return None
        work: dict[str, Any] = {
            "stage": step.stage.name,
            "version": step.stage.version,
            "config": canonical.plain(step.config),
            "model": made[step.reads].id if step.reads else None,
            "steps": {name: made[name].id for name in step.steps},
            "data": {name: self.digest(name) for name in step.data},
            "seed": self.recipe.seed,
            "packages": {name: minor_version(name) for name in step.stage.needs},
        }
        if assumed:
            work["assumes"] = {item.name: item.value for item in assumed}
        if step.stage.named:
            work["name"] = self.recipe.name
        return {**work, "machine": machine(self.device)} if step.stage.machine else work

    def planned(self, step: Step, made: Mapping[str, Artifact]) -> PlannedStep:
        """Plan one step, given the artifacts made so far."""
        assumed = (*step.stage.assumes(step.config, self.device), *self.crew.assumed(step))
        work = self._work(step, made, assumed)
        if work is None:
            missing = [name for name in step.inputs if name not in made]
            return PlannedStep(step, None, None, f"after {', '.join(missing)}", assumed)
        artifact = self.store.find(canonical.digest(work))
        if artifact is None:
            return PlannedStep(step, work, None, self._changes(step, work), assumed)
        return PlannedStep(step, work, artifact, "forced" if step.id in self.force else "", assumed)

    def _changes(self, step: Step, work: Mapping[str, Any]) -> str:
        """Say what differs from the last run's work on the step of the same id."""
        before = next((item for item in self.last.steps if item.id == step.id), None) if self.last else None
        if before is None:
            return "not done before"
        try:
            old = self.store.get(before.artifact).manifest.work
        except Exception:  # noqa: BLE001 - the reason is a courtesy; a damaged old artifact must not stop a new run
            return "its earlier result is gone"
        return "; ".join(_differences(old, work)) or "its earlier result is gone"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    told = []
    if old.get("stage") != new["stage"]:
        return [f"was {old.get('stage')}"]
    for key in sorted(set(old["config"]) | set(new["config"])):
        before, now = old["config"].get(key), new["config"].get(key)
        if before != now:
            plain = not isinstance(before, (dict, list)) and not isinstance(now, (dict, list))
            told.append(f"{key}: {before} → {now}" if plain else f"{key} changed")
    names = {"version": "stage version", "model": "its input", "steps": "a step it names", "seed": "seed"}
    told += [f"{text} changed" for key, text in names.items() if old.get(key) != new[key]]
    told += [f"data '{name}' changed" for name, value in new["data"].items() if old["data"].get(name) != value]
    for name, version in new["packages"].items():
        if old["packages"].get(name) != version:
            told.append(f"{name} {old['packages'].get(name)} → {version}")
    before, now = old.get("assumes", {}), new.get("assumes", {})
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            told.append(f"{name}: {before.get(name, MISSING)} → {now.get(name, MISSING)}")
    if old.get("name") != new.get("name"):
        told.append("the recipe's name changed")
    if old.get("machine") != new.get("machine"):
        told.append("another machine or device")
    return told


def plan(desk: Desk) -> list[PlannedStep]:
    """Plan every step of the recipe without running anything.

    Raises:
        ModelpackError: When data cannot be opened or the store is damaged.
    """
    made: dict[str, Artifact] = {}
    planned = []
    for step in desk.recipe.steps:
        item = desk.planned(step, made)
        planned.append(item)
        if item.artifact is not None and not item.why:
            made[step.id] = item.artifact
    return planned
