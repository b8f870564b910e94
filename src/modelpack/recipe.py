"""One file that says everything: where the model comes from, its data, its stages and its budget.

`load` reads it without running anything and reports all that is wrong at once: grammar and settings here, what the
steps mean to each other in `soundness`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from modelpack import document, registry, soundness
from modelpack.bind import bind
from modelpack.budget import Budget
from modelpack.data import SourceConfig
from modelpack.document import Items, Node, Scalar, Table
from modelpack.errors import ModelpackError, Place, Problem, RecipeError, UsageError, did_you_mean
from modelpack.overrides import override
from modelpack.stage import Stage, StageConfig, StepName
from modelpack.steps import MODEL, DataEntry, Step, references

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from modelpack.artifact import Kind
    from modelpack.tensors import TensorSpec

KEYS = ("name", "seed", "model", "data", "budget", "allow", "stages")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    steps: dict[str, Step] = field(default_factory=dict)
    unbound: set[str] = field(default_factory=set)

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
        self._stages()
        inputs: Mapping[str, TensorSpec] = {}
        if first is not None and not self.problems:
            inputs = self._inputs(first)
            self._fit(data, inputs)
        # Meaning is checked as soon as the grammar of the steps is known; settings problems do not hide it.
        steps = tuple(self.steps.values())
        self.problems += soundness.check_order(steps, set(head.allow) if head else set())
        bound = tuple(step for step in steps if step.id not in self.unbound)
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
        stage = registry.stages().get("onnx_model" if isinstance(node, Table) and node.get("onnx") else MODEL)
        config = bind(node, stage.config, self.problems, base=self.base)
        step = Step(MODEL, stage, config or StageConfig(), None, (), (), node)
        self.steps[MODEL] = step
        return step if config else None

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
            plugin = self._plugin(value, registry.sources(), f"'{key.text}' needs one source")
            if plugin is None:
                continue
            config = bind(plugin[1], plugin[0].config, self.problems, base=self.base)
            entries[key.text] = DataEntry(key.text, plugin[0], config or SourceConfig())
        return entries

    def _plugin(self, node: Node, plugins: registry.Plugins[Any], wanted: str) -> tuple[Any, Node] | None:
        """Read ``name: settings``, or a bare name."""
        if isinstance(node, Scalar) and not node.null:
            name, settings = node, Scalar(node.place, node.line, node.length, "")
        elif isinstance(node, Table) and len(node.entries) == 1:
            name, settings = node.entries[0]  # type: ignore[assignment]
        else:
            known = ", ".join(plugins.names())
            self.problems.append(node.problem(f"{wanted}, as 'name: settings'", f"one of: {known}"))
            return None
        try:
            return plugins.get(name.text), settings
        except UsageError as error:
            self.problems.append(name.problem(error.what, error.then))
            return None

    def _stages(self) -> None:
        node = self.root.get("stages")
        if not isinstance(node, Items) or not node.items:
            at = self.root.key("stages") or self.root
            self.problems.append(at.problem("'stages' must list at least one step", "for example '- export:'"))
            return
        for item in node.items:
            self._step(item)

    def _step(self, item: Node) -> None:
        siblings: dict[str, Scalar] = {}
        body = item
        if isinstance(item, Table):
            for word in ("id", "from"):
                value = item.get(word)
                if value is not None and not isinstance(value, Scalar):
                    self.problems.append(value.problem(f"'{word}' is one word"))
                elif value is not None:
                    siblings[word] = value
            rest = tuple((key, value) for key, value in item if key.text not in ("id", "from"))
            body = Table(item.place, item.line, item.length, rest)
        plugin = self._plugin(body, registry.stages(), "a step needs one stage")
        if plugin is None:
            return
        stage, settings = plugin
        name = body.entries[0][0] if isinstance(body, Table) else body
        if not stage.accepts:
            self.problems.append(name.problem(f"'{stage.name}' brings a model in and cannot be a step", "use `model:`"))
            return
        config = bind(settings, stage.config, self.problems, base=self.base)
        steps, names = self._references(stage, settings, name)
        reads = self._reads(stage, siblings.get("from"), name)
        identity = siblings["id"].text if "id" in siblings else stage.name
        at = siblings.get("id", name)
        if identity == MODEL:
            self.problems.append(at.problem("'model' names the model itself"))
        elif identity in self.steps:
            self.problems.append(at.problem(f"a step is already named '{identity}'", "give this one another `id:`"))
        elif not _STEP.fullmatch(identity):
            self.problems.append(at.problem("an id is letters, digits, '-' and '_'"))
        else:
            if config is None:
                self.unbound.add(identity)
            self.steps[identity] = Step(identity, stage, config or StageConfig(), reads, steps, names, name)

    def _reads(self, stage: Stage[Any], given: Scalar | None, name: Node) -> str | None:
        if given is None:
            # The newest model, whatever its kind: reaching past it in silence would drop what it did.
            last = next((step for step in reversed(self.steps.values()) if step.stage.produces.is_model), None)
            if last is not None and last.stage.produces not in stage.accepts:
                message = f"'{stage.name}' reads {_kinds(stage.accepts)} but '{last.id}' gives {last.stage.produces}"
                fits = [step.id for step in self.steps.values() if step.stage.produces in stage.accepts]
                self.problems.append(
                    name.problem(message, f"put it earlier, or say `from: {fits[-1]}`" if fits else "")
                )
            return last.id if last else None
        self._named_step(given.text, given, stage.accepts, f"'{stage.name}' reads")
        return given.text if given.text in self.steps else None

    def _named_step(self, word: str, node: Node, kinds: Iterable[Kind], who: str) -> None:
        step = self.steps.get(word)
        if step is None:
            self.problems.append(node.problem(f"no earlier step is named '{word}'", did_you_mean(word, self.steps)))
        elif step.stage.produces not in kinds:
            self.problems.append(node.problem(f"{who} {_kinds(kinds)} but '{word}' gives {step.stage.produces}"))

    def _references(self, stage: Stage[Any], settings: Node, at: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Check the settings that name steps or data, whatever else is wrong with the settings; give those names."""
        steps: dict[str, None] = {}
        names: dict[str, None] = {}
        data_node = self.root.get("data")
        known = [key.text for key, _ in data_node] if isinstance(data_node, Table) else []
        for key, mark in references(stage.config).items():
            given = settings.get(key) if isinstance(settings, Table) else None
            for word, node in _words(given, stage.config.model_fields[key].default, at):
                if isinstance(mark, StepName):
                    self._named_step(word, node, mark.kinds, f"'{key}' must be")
                    steps[word] = None
                elif word in known:
                    names[word] = None
                else:
                    hint = did_you_mean(word, known) or f"add it under `data:` ({stage.name} reads it)"
                    self.problems.append(node.problem(f"no data is named '{word}'", hint))
        return tuple(steps), tuple(names)


def _words(given: Node | None, default: object, at: Node) -> list[tuple[str, Node]]:
    """List the names in a setting, each at its place; those of its default stand at the step itself."""
    if given is None:
        named = default if isinstance(default, (list, tuple)) else [default]
        return [(word, at) for word in named if isinstance(word, str)]
    nodes = given.items if isinstance(given, Items) else [given]
    return [(node.text, node) for node in nodes if isinstance(node, Scalar) and not node.null]


def _kinds(kinds: Iterable[Kind]) -> str:
    return " or ".join(sorted(kinds))


def _placed(error: ModelpackError) -> str:
    """Say what is wrong with which file: the line of the recipe shows another one where ``--set`` named it."""
    return f"{error.where}: {error.what}" if error.where else error.what
