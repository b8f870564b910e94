"""One file that says everything: where the model comes from, its data, its stages and its budget.

`load` reads it without running anything and reports all that is wrong at once: the grammar here and in `lines`, what
the steps mean to each other in `soundness`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from modelpack import document, registry, soundness
from modelpack.bind import bind
from modelpack.budget import Budget
from modelpack.data import SourceConfig
from modelpack.document import Items, Scalar, Table
from modelpack.errors import ModelpackError, Place, Problem, RecipeError, UsageError, did_you_mean
from modelpack.lines import Lines, plugin
from modelpack.overrides import override
from modelpack.stage import Stage, StageConfig
from modelpack.steps import MODEL, DataEntry, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from modelpack.tensors import TensorSpec

KEYS = ("name", "seed", "model", "data", "budget", "allow", "stages")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Head(BaseModel):
    """The scalars at the top of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")] | None = Field(
        None, description="What runs and images are called; the file's name when absent."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    allow: tuple[str, ...] = Field((), description="What the planner would refuse but you want, such as 'unrecovered'.")


@dataclass(frozen=True)
class Recipe:
    """A recipe that makes sense.

    Attributes:
        name: What its runs are called.
        path: The file.
        text: The file, word for word.
        overrides: ``--set`` values applied to it.
        seed: Seed of everything random.
        steps: What to do, in order; the first one brings the model in.
        data: Data entries by name.
        inputs: The model's inputs.
        budget: The gates.
        deciding: Budget line → id of the step whose measurement decides it.
    """

    name: str
    path: Path
    text: str
    overrides: tuple[str, ...]
    seed: int
    steps: tuple[Step, ...]
    data: Mapping[str, DataEntry]
    inputs: Mapping[str, TensorSpec]
    budget: Budget
    deciding: Mapping[str, str]

    def upto(self, identity: str) -> Recipe:
        """Give the recipe that ends with a step.

        Raises:
            UsageError: When there is no such step, or the budget is decided by one after it.
        """
        order = [step.id for step in self.steps]
        if identity not in order:
            raise UsageError(f"the recipe has no step '{identity}'", then=did_you_mean(identity, order))
        kept = order[: order.index(identity) + 1]
        late = [name for name, who in self.deciding.items() if who not in kept]
        if late:
            raise UsageError(
                f"the budget's {', '.join(late)} would not be checked by a run that ends with '{identity}'",
                then=f"end with '{self.deciding[late[0]]}' or later",
            )
        return replace(self, steps=self.steps[: len(kept)])


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file; names in it are relative to its directory.
        overrides: ``dotted.path=value`` texts, bound like the file itself.

    Raises:
        UsageError: When the file cannot be read.
        RecipeError: With every problem found.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"cannot read the recipe: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        place = Place(str(path), path.read_bytes()[: error.start].count(b"\n") + 1)
        raise RecipeError([Problem(place, "not UTF-8 text")]) from error
    return parse(text, path, overrides)


def parse(text: str, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from its text, as if it stood in the file `path`.

    Raises:
        RecipeError: With every problem found.
    """
    root, problems = document.parse(text, str(path))
    if root is None and not problems:
        problems.append(Problem(Place(str(path), 1), "the recipe is empty", hint="`modelpack init` writes one"))
    elif root is not None and not isinstance(root, Table):
        problems.append(root.problem("a recipe is a mapping", f"its keys are {', '.join(KEYS)}"))
    if not isinstance(root, Table):
        raise RecipeError(problems)
    for number, assignment in enumerate(overrides, 1):
        root = override(root, assignment, f"--set:{number}", problems, KEYS)
    reader = _Reader(root, path, problems)
    recipe = reader.read(text, tuple(overrides))
    if problems or recipe is None:
        raise RecipeError(problems)
    return recipe


@dataclass
class _Reader:
    """Reads the parts of one recipe, collecting problems."""

    root: Table
    path: Path
    problems: list[Problem]

    @property
    def base(self) -> Path:
        return self.path.resolve().parent

    def read(self, text: str, overrides: tuple[str, ...]) -> Recipe | None:
        for key, _ in self.root:
            if key.text not in KEYS:
                self.problems.append(key.problem(f"unknown key '{key.text}'", did_you_mean(key.text, KEYS)))
        head_table = Table(
            self.root.place,
            self.root.line,
            1,
            tuple((k, v) for k, v in self.root if k.text in Head.model_fields),
        )
        head = bind(head_table, Head, self.problems, base=self.base)
        first = self._model()
        data = self._data()
        budget_node = self.root.get("budget")
        budget = bind(budget_node, Budget, self.problems, base=self.base) if budget_node else Budget()
        lines = self._lines(first)
        inputs: Mapping[str, TensorSpec] = {}
        if first is not None and not self.problems:
            inputs = self._inputs(first)
            self._fit(data, inputs)
        # Meaning is checked as soon as the grammar of the steps is known; settings problems do not hide it.
        steps = tuple(lines.steps.values())
        self.problems += soundness.check_order(steps, set(head.allow) if head else set())
        bound = tuple(step for step in steps if step.id not in lines.unbound)
        deciding, undecided = soundness.decide(bound, budget or Budget(), budget_node or self.root)
        if bound == steps:  # otherwise a step whose settings are wrong may be the one that measures
            self.problems += undecided
        if self.problems or head is None or budget is None or first is None:
            return None
        name = head.name or self.path.stem.lower()
        if not _NAME.fullmatch(name):
            self.problems.append(self.root.problem("the file's name cannot name its runs", "give the recipe a `name:`"))
        return Recipe(
            name=name,
            path=self.path,
            text=text,
            overrides=overrides,
            seed=head.seed,
            steps=steps,
            data=data,
            inputs=inputs,
            budget=budget,
            deciding=deciding,
        )

    def _model(self) -> Step | None:
        node = self.root.get(MODEL)
        if node is None:
            self.problems.append(
                Problem(self.root.place, "missing key 'model'", self.root.line, 1, "where is the model?")
            )
            return None
        if isinstance(node, Table) and node.get("onnx") and (key := node.key("factory")):
            self.problems.append(key.problem("a model has a `factory` or is an `onnx` file, not both", "take one out"))
            return None
        stage = self._importer()
        config = bind(node, stage.config, self.problems, base=self.base)
        return Step(MODEL, stage, config, None, (), (), node) if config else None

    def _lines(self, first: Step | None) -> Lines:
        """Read the steps; a model that cannot be read leaves a gap that no step is blamed for."""
        data = self.root.get("data")
        lines = Lines(self.base, [key.text for key, _ in data] if isinstance(data, Table) else [], self.problems)
        lines.steps[MODEL] = first or Step(MODEL, self._importer(), StageConfig(), None, (), (), self.root)
        node = self.root.get("stages")
        if isinstance(node, Items) and node.items:
            for item in node.items:
                lines.read(item)
        else:
            at = self.root.key("stages") or self.root
            self.problems.append(at.problem("'stages' must list at least one step", "for example '- export:'"))
        return lines

    def _importer(self) -> Stage[Any]:
        """Give the stage that brings the model in: the kind of model decides."""
        node = self.root.get(MODEL)
        return registry.stages().get("onnx_model" if isinstance(node, Table) and node.get("onnx") else MODEL)

    def _inputs(self, first: Step) -> Mapping[str, TensorSpec]:
        try:
            return first.stage.inputs(first.config)
        except ModelpackError as error:
            self.problems.append(first.node.problem(_placed(error), error.then))
            return {}

    def _fit(self, entries: Mapping[str, DataEntry], inputs: Mapping[str, TensorSpec]) -> None:
        """Open each data entry, which reads no rows, to see whether it fits the model's inputs."""
        node = self.root.get("data")
        for name, entry in entries.items() if not self.problems else ():
            try:
                entry.open(inputs)
            except ModelpackError as error:
                at = (node.key(name) if isinstance(node, Table) else None) or self.root
                self.problems.append(at.problem(_placed(error), error.then))

    def _data(self) -> dict[str, DataEntry]:
        node = self.root.get("data")
        entries: dict[str, DataEntry] = {}
        if node is None or (isinstance(node, Scalar) and node.null):
            return entries
        if not isinstance(node, Table):
            self.problems.append(node.problem("data is a mapping", "name: {source: settings}"))
            return entries
        for key, value in node:
            found = plugin(value, registry.sources(), f"'{key.text}' needs one source", self.problems)
            if found is None:
                continue
            config = bind(found[1], found[0].config, self.problems, base=self.base)
            entries[key.text] = DataEntry(key.text, found[0], config or SourceConfig())
        return entries


def _placed(error: ModelpackError) -> str:
    """Say what is wrong with which file: the line of the recipe shows another one where ``--set`` named it."""
    return f"{error.where}: {error.what}" if error.where else error.what
