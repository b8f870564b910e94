"""The lines under `stages:`: which plugin each names, what it reads, and the names in its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modelpack import registry
from modelpack.bind import bind
from modelpack.document import Items, Node, Scalar, Table
from modelpack.errors import Problem, UsageError, did_you_mean
from modelpack.stage import Stage, StageConfig, StepName
from modelpack.steps import MODEL, Step, named, references

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from modelpack.artifact import Kind

_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def plugin(node: Node, plugins: registry.Plugins[Any], wanted: str, problems: list[Problem]) -> tuple[Any, Node] | None:
    """Read ``name: settings``, or a bare name; gives the plugin and the node of its settings."""
    if isinstance(node, Scalar) and not node.null:
        name, settings = node, Scalar(node.place, node.line, node.length, "")
    elif isinstance(node, Table) and len(node.entries) == 1:
        name, settings = node.entries[0]  # type: ignore[assignment]
    else:
        known = ", ".join(plugins.names())
        problems.append(node.problem(f"{wanted}, as 'name: settings'", f"one of: {known}"))
        return None
    try:
        return plugins.get(name.text), settings
    except UsageError as error:
        problems.append(name.problem(error.what, error.then))
        return None


@dataclass
class Lines:
    """Reads the lines of a recipe one after the other.

    Attributes:
        base: Directory that paths in settings are relative to.
        data: Names of the recipe's data entries.
        problems: Receives what is wrong.
        steps: The steps so far, by id, the model first.
        unbound: Ids of steps whose settings are wrong.
    """

    base: Path
    data: Sequence[str]
    problems: list[Problem]
    steps: dict[str, Step] = field(default_factory=dict)
    unbound: set[str] = field(default_factory=set)

    def read(self, item: Node) -> None:
        """Read one line and add its step."""
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
        found = plugin(body, registry.stages(), "a step needs one stage", self.problems)
        if found is None:
            return
        stage, settings = found
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
            step = Step(identity, stage, config or StageConfig(), reads, steps, names, name)
            if config is None:
                self.unbound.add(identity)
            else:
                step = self._implied(step)
            self.steps[identity] = step

    def _implied(self, step: Step) -> Step:
        """Add the step that another one needs and leaves out; gives the other one with that step named in it.

        Ids that users give hold no dot, so that it can bear a name made of both.
        """
        wanted = step.stage.implies(step.config)
        if wanted is None:
            return step
        stage = registry.stages().get(wanted.stage)
        config = stage.config.model_validate(dict(wanted.settings))
        identity = f"{step.id}.{stage.name}"
        self.steps[identity] = Step(identity, stage, config, step.reads, (), named(config), step.node, implied=True)
        config = step.config.model_copy(update={wanted.field: identity})
        return replace(step, config=config, steps=(*step.steps, identity))

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
        for key, mark in references(stage.config).items():
            given = settings.get(key) if isinstance(settings, Table) else None
            for word, node in _words(given, stage.config.model_fields[key].default, at):
                if isinstance(mark, StepName):
                    self._named_step(word, node, mark.kinds, f"'{key}' must be")
                    steps[word] = None
                elif word in self.data:
                    names[word] = None
                else:
                    hint = did_you_mean(word, self.data) or f"add it under `data:` ({stage.name} reads it)"
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
