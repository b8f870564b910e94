"""The lines of a recipe, bound: steps and data entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.stage import DataName, Stage, StageConfig, StepName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.data import DataSource, Source, SourceConfig
    from modelpack.document import Node
    from modelpack.tensors import TensorSpec

MODEL = "model"
"""Id of the step that brings the model in; it is in every recipe and written in none."""


@dataclass(frozen=True)
class DataEntry:
    """One entry of `data:`: a source plugin and its settings."""

    name: str
    source: Source[Any]
    config: SourceConfig

    def open(self, inputs: Mapping[str, TensorSpec]) -> DataSource:
        """Open it for a model with these inputs.

        Raises:
            ModelpackError: When it cannot be opened.
        """
        return self.source.open(self.config, inputs)


@dataclass(frozen=True)
class Step:
    """One line of a recipe.

    Attributes:
        id: Unique in the recipe; the stage's name unless given.
        stage: The plugin.
        config: Its bound settings.
        reads: Id of the step whose artifact it reads; None for the model itself.
        steps: Ids that its settings name.
        data: Data entries that its settings name.
        node: Where it stands.
        implied: Whether another step's settings asked for it, and no line of the recipe.
    """

    id: str
    stage: Stage[Any]
    config: StageConfig
    reads: str | None
    steps: tuple[str, ...]
    data: tuple[str, ...]
    node: Node
    implied: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Ids of all steps whose artifacts it needs, each once; the one it reads first."""
        return tuple(dict.fromkeys(([self.reads] if self.reads else []) + list(self.steps)))


def references(kind: type[StageConfig]) -> dict[str, StepName | DataName]:
    """Give the settings of a stage that name a step or a data entry, with what they name."""
    found = {key: marks(info.annotation, info.metadata) for key, info in kind.model_fields.items()}
    return {key: said[0] for key, said in found.items() if said}


def named(config: StageConfig) -> tuple[str, ...]:
    """List the data entries that bound settings name."""
    fields = [key for key, mark in references(type(config)).items() if isinstance(mark, DataName)]
    values = [getattr(config, key) for key in fields]
    words = [word for value in values for word in (value if isinstance(value, tuple) else (value,))]
    return tuple(dict.fromkeys(word for word in words if word is not None))


def marks(annotation: Any, metadata: Sequence[Any] = ()) -> list[StepName | DataName]:
    """Find the marks of a field's type, wherever in it they stand."""
    found = [item for item in metadata if isinstance(item, (StepName, DataName))]
    for arm in (*getattr(annotation, "__metadata__", ()), *getattr(annotation, "__args__", ())):
        found += [arm] if isinstance(arm, (StepName, DataName)) else marks(arm)
    return found
