"""What the steps of a recipe mean to each other: what cannot end well is found before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack import registry
from modelpack.artifact import Kind
from modelpack.document import Node, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelpack.budget import Budget
    from modelpack.errors import Problem
    from modelpack.steps import Step


def check_order(steps: Sequence[Step], allow: set[str]) -> list[Problem]:
    """Report a step that cannot work on what it gets, and a debt that nobody pays before the model leaves torch.

    Args:
        steps: In order, the model first.
        allow: Debts and marks that the recipe accepts.
    """
    problems: list[Problem] = []
    owed: dict[str, dict[str, Step]] = {}
    marks: dict[str, frozenset[str]] = {}
    readers = {step.reads for step in steps if step.stage.produces.is_model}
    for step in steps:
        before = marks.get(step.reads or "", frozenset())
        # An implied step reads what the one that implied it reads, which says the same.
        for mark in sorted((step.stage.refuses & before) - allow) if not step.implied else ():
            hint = f"put it earlier, or say `allow: [{mark}]`"
            problems.append(step.node.problem(f"'{step.id}' cannot work on a {mark} model", hint))
        debts = {debt: who for debt, who in owed.get(step.reads or "", {}).items() if debt not in step.stage.pays}
        debts |= dict.fromkeys(step.stage.owes.difference(_settled(step)), step)
        leaves_torch = step.stage.produces in (Kind.ONNX, Kind.IMAGE)
        ends = step.stage.produces.is_model and step.id not in readers
        if leaves_torch or ends:
            problems += [_unpaid(debt, debts[debt]) for debt in sorted(set(debts) - allow)]
            debts = {}
        owed[step.id] = debts
        marks[step.id] = before | step.stage.marks
    return problems


def _settled(step: Step) -> Iterable[str]:
    """List the debts that a step pays itself; with settings that could not be read, it might pay any."""
    return step.stage.settles(step.config) if isinstance(step.config, step.stage.config) else step.stage.owes


def _unpaid(debt: str, who: Step) -> Problem:
    stages = registry.stages()
    payers = " or ".join(f"'{name}'" for name in stages.names() if debt in stages.get(name).pays)
    return who.node.problem(f"'{who.id}' leaves the model {debt}", f"add {payers} after it, or say `allow: [{debt}]`")


def decide(steps: Sequence[Step], budget: Budget, node: Node) -> tuple[dict[str, str], list[Problem]]:
    """Find the step that decides each budget line: the last one that measures it, before any image is built.

    Args:
        steps: In order, the model first.
        budget: The gates.
        node: Where the budget stands.

    Returns:
        Budget line → step id, and the problems.
    """
    problems: list[Problem] = []
    deciding: dict[str, str] = {}
    for name in budget.lines():
        for step in steps:
            if _measures(step, name):
                deciding[name] = step.id
        if name not in deciding:
            at = (node.key(name) if isinstance(node, Table) else None) or node
            stage = "bench" if name in ("speedup", "latency_ms") else "evaluate"
            hint = f"add a step such as '- {stage}:' whose settings give it"
            problems.append(at.problem(f"no step of this recipe measures '{name}'", hint))
    return deciding, problems + _late(steps, deciding)


def _measures(step: Step, name: str) -> bool:
    if name == "size":
        return step.stage.produces.is_model and step.reads is not None
    return name in step.stage.gauges(step.config)


def _late(steps: Sequence[Step], deciding: Mapping[str, str]) -> list[Problem]:
    """An image must not be built before every line is decided, but for lines that only the image can decide."""
    order = [step.id for step in steps]
    problems = []
    for step in steps:
        late = [name for name, who in deciding.items() if order.index(who) > order.index(step.id)]
        if step.stage.produces is Kind.IMAGE and late:
            message = f"'{step.id}' would package before the budget is checked: {', '.join(late)}"
            problems.append(step.node.problem(message, f"put it after '{deciding[late[0]]}'"))
    return problems
