"""What a stage is: a value made of a function, its config type and a version."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from modelpack.artifact import Artifact, Kind
from modelpack.bind import config_type
from modelpack.errors import StageError
from modelpack.events import Emit, Metric, Note, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelpack.data import Batch, DataSource
    from modelpack.tensors import TensorSpec

T = TypeVar("T")


class StageConfig(BaseModel):
    """Settings of a stage: frozen, unknown keys refused, every field with a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class DataName:
    """Marks a field that names an entry of the recipe's `data:`."""


@dataclass(frozen=True)
class StepName:
    """Marks a field that names another step, or `model`; `kinds` are the kinds it may give."""

    kinds: frozenset[Kind] = frozenset({Kind.TORCH, Kind.ONNX})


@dataclass(frozen=True)
class Implied:
    """A step that stands before another one though no line of the recipe says so.

    Attributes:
        stage: Name of its stage; it reads what the other one reads.
        settings: Its settings, as a recipe would give them.
        field: The setting of the other one that names it.
    """

    stage: str
    settings: Mapping[str, Any]
    field: str


DataRef = Annotated[str, DataName()]
StepRef = Annotated[str, StepName()]
TorchRef = Annotated[str, StepName(frozenset({Kind.TORCH}))]
CalibrationRef = Annotated[str, StepName(frozenset({Kind.CALIBRATION}))]


@dataclass(frozen=True)
class Job:
    """All that a running stage may touch.

    Attributes:
        model: The artifact it reads; None for a stage that reads none.
        inputs: The model's input tensors, by name.
        steps: Artifacts named by the config's `StepRef` fields, by the name in the recipe.
        data: Sources named by the config's `DataRef` fields, by the name in the recipe.
        synthetic: Names of the sources among `data` whose rows are invented.
        out: Empty directory for the result; the engine seals it when the stage returns.
        scratch: Directory that survives a failed or killed try of the same work and is given to the next one.
        shared: Directory that all steps of all runs share, also at the same time, for what costs time to compute anew.
            It may be emptied between two steps, and no result may depend on what it holds.
        device: ``cpu`` or ``cuda:N``.
        seed: The recipe's seed.
        name: The recipe's name.
        step: This step's id.
        past: Gives the model, what it was made from, the nearest first, and the reports on it.
    """

    model: Artifact | None
    inputs: Mapping[str, TensorSpec]
    out: Path
    scratch: Path
    shared: Path
    steps: Mapping[str, Artifact] = field(default_factory=dict)
    data: Mapping[str, DataSource] = field(default_factory=dict)
    synthetic: frozenset[str] = frozenset()
    device: str = "cpu"
    seed: int = 0
    name: str = ""
    step: str = ""
    past: Callable[[], Sequence[Artifact]] = tuple
    emit: Emit = lambda _event: None
    metrics: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def source(self) -> Artifact:
        """The artifact this stage reads, for stages that always have one."""
        assert self.model is not None, "the engine gives every stage that accepts a kind its model"
        return self.model

    def metric(self, name: str, value: float | str) -> None:
        """Record one figure; a name that the recipe's budget knows is checked against it.

        Raises:
            StageError: For NaN or infinity: a model that gives them has failed, and no budget could judge it.
        """
        if isinstance(value, float) and not math.isfinite(value):
            then = "the model's outputs, or the data, are not finite numbers"
            raise StageError(f"measured {name} = {value}", then=then)
        self.metrics[name] = value
        self.emit(Metric(self.step, name, value))

    def result(self, name: str, value: Any) -> None:
        """Record a table or other JSON value with the artifact, outside its identity (timings, per-layer lists)."""
        self.results[name] = value

    def note(self, text: str) -> None:
        """Tell the user something that needs no action."""
        self.emit(Note(self.step, text))

    def warn(self, text: str) -> None:
        """Tell the user something that deserves attention; it is kept in the artifact's record."""
        self.warnings.append(text)
        self.emit(Note(self.step, text, warning=True))

    def track(self, items: Iterable[T], total: int = 0, label: str = "") -> Iterator[T]:
        """Pass items through, showing progress; `total` 0 means unknown."""
        for done, item in enumerate(items):
            self.emit(Progress(self.step, label, done, total))
            yield item
        self.emit(Progress(self.step, label, total or 1, total or 1))

    def batches(self, name: str) -> Iterator[Batch]:
        """Read a data source once, showing progress in rows."""
        source = self.data[name]
        done = 0
        for batch in source.batches():
            self.emit(Progress(self.step, name, done, len(source)))
            yield batch
            done += len(next(iter(batch.values())))
        self.emit(Progress(self.step, name, done, done))


@dataclass(frozen=True)
class Outside:
    """What a preflight may look at: the device that was asked for, and the step's data sources, opened but not read."""

    device: str
    data: Mapping[str, DataSource] = field(default_factory=dict)


@dataclass(frozen=True)
class Assumption:
    """A fact about the surroundings that a stage's result depends on; the value is part of its fingerprint.

    Attributes:
        name: What is assumed, such as ``target``.
        value: What it is taken to be.
        why: What follows from it, for people.
    """

    name: str
    value: str
    why: str


C = TypeVar("C", bound=StageConfig)


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage plugin.

    Attributes:
        name: What recipes call it.
        run: The function that does the work.
        config: Type of its settings.
        version: Raised by hand when the same settings and inputs begin to give another result.
        accepts: Kinds it reads; empty when it reads no model.
        produces: Kind it makes; a function of the model's kind and config would hide it from the planner.
        needs: Distributions whose major.minor version is part of the fingerprint.
        trains: Whether a config makes it train a model, in a loop that the processes of a crew can share.
        machine: True for a stage that measures: its fingerprint includes the machine's identity.
        named: True for a stage whose result bears the recipe's name: its fingerprint includes that.
        owes: Debts that a later step must pay before the model leaves torch, such as ``unrecovered``.
        settles: Those of them that a config pays itself.
        pays: Debts that this stage pays.
        marks: Facts that stay true of the model afterwards, such as ``quantized``.
        refuses: Marks that it cannot work on.
        gauges: Names of the budget lines that a config measures.
        preflight: Raises `MissingError` or `UsageError` before the first stage runs when this one could not.
        inputs: For a stage that brings a model in: the model's inputs, known without loading it.
        implies: For a config that leaves out a step it needs: that step.
        assumes: What a config takes from the surroundings, given the device.
        effect: What is done outside the store after every run, cached or not, such as loading an image into an
            engine; repeating it changes nothing. Its job has no `out`.
        summary: One sentence of help, the first line of the function's docstring.
    """

    name: str
    run: Callable[[C, Job], None]
    config: type[C]
    version: int
    accepts: frozenset[Kind]
    produces: Kind
    needs: tuple[str, ...]
    trains: Callable[[C], bool]
    machine: bool
    named: bool
    owes: frozenset[str]
    settles: Callable[[C], Iterable[str]]
    pays: frozenset[str]
    marks: frozenset[str]
    refuses: frozenset[str]
    gauges: Callable[[C], Iterable[str]]
    preflight: Callable[[C, Outside], None]
    inputs: Callable[[C], Mapping[str, TensorSpec]]
    implies: Callable[[C], Implied | None]
    assumes: Callable[[C, str], Iterable[Assumption]]
    effect: Callable[[C, Artifact, Job], None]
    summary: str


def stage(
    *,
    version: int,
    accepts: Iterable[Kind],
    produces: Kind,
    needs: Iterable[str] = (),
    trains: Callable[[Any], bool] = lambda _config: False,
    machine: bool = False,
    named: bool = False,
    owes: Iterable[str] = (),
    settles: Callable[[Any], Iterable[str]] = lambda _config: (),
    pays: Iterable[str] = (),
    marks: Iterable[str] = (),
    refuses: Iterable[str] = (),
    gauges: Callable[[Any], Iterable[str]] = lambda _config: (),
    preflight: Callable[[Any, Outside], None] = lambda _config, _outside: None,
    inputs: Callable[[Any], Mapping[str, TensorSpec]] = lambda _config: {},
    implies: Callable[[Any], Implied | None] = lambda _config: None,
    assumes: Callable[[Any, str], Iterable[Assumption]] = lambda _config, _device: (),
    effect: Callable[[Any, Artifact, Job], None] = lambda _config, _artifact, _job: None,
) -> Callable[[Callable[[Any, Job], None]], Stage[Any]]:
    """Declare a stage; its config type is read from the function's first annotation, its help from the docstring."""

    def declare(function: Callable[[Any, Job], None]) -> Stage[Any]:
        return Stage(
            name=function.__name__,
            run=function,
            config=config_type(function),
            version=version,
            accepts=frozenset(accepts),
            produces=produces,
            needs=tuple(needs),
            trains=trains,
            machine=machine,
            named=named,
            owes=frozenset(owes),
            settles=settles,
            pays=frozenset(pays),
            marks=frozenset(marks),
            refuses=frozenset(refuses),
            gauges=gauges,
            preflight=preflight,
            inputs=inputs,
            implies=implies,
            assumes=assumes,
            effect=effect,
            summary=(function.__doc__ or "").strip().split("\n")[0],
        )

    return declare
