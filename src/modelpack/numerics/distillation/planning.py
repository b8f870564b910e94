"""From what is wished for to what is trained: which task the truth speaks of, and which parts belong together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics import models
from modelpack.numerics.calling import call
from modelpack.numerics.distillation import attention, matching, tasks
from modelpack.numerics.distillation.aspects import features, outputs
from modelpack.numerics.distillation.aspects.features import Features
from modelpack.numerics.distillation.aspects.outputs import Outputs
from modelpack.numerics.distillation.aspects.relations import Relations
from modelpack.numerics.distillation.aspects.similarity import Similarity
from modelpack.numerics.distillation.imitation import Imitation
from modelpack.numerics.distillation.question import question
from modelpack.numerics.distillation.taps import Tap, Told, at, survey, watch
from modelpack.numerics.training import layout
from modelpack.numerics.training.batches import TRUTH, split

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from modelpack.numerics.distillation.aspects import Aspect, Name
    from modelpack.numerics.distillation.aspects.features import Pair
    from modelpack.numerics.distillation.distances import Distance
    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.tasks import Task
    from modelpack.numerics.training.batches import Rows


Taps = tuple[tuple[Tap, ...], tuple[Tap, ...]]
"""Where to look inside the student, and inside the teacher."""


@dataclass(frozen=True)
class Wish:
    """What is to be imitated, and how.

    Attributes:
        weights: Aspect → weight.
        distances: Output → distance, see `Outputs.wanted`.
        temperature: Softens distributions.
        alpha: Weight of the teacher beside the truth.
        features: Pairs of paths; matched by depth and shape when empty.
        relations: Pairs of paths of attention; the last ones when empty.
        yielding: Aspects that give way where the two models have nothing that belongs together.
        mask: The input that tells padded positions.
    """

    weights: Mapping[Name, float] = field(default_factory=lambda: {"outputs": 1.0})
    distances: Mapping[str, Distance] = field(default_factory=dict)
    temperature: float = 4.0
    alpha: float = 0.7
    features: Sequence[Pair] = ()
    relations: Sequence[Pair] = ()
    yielding: Collection[Name] = ()
    mask: str | None = None


def task_for(
    data: Rows,
    teacher: nn.Module,
    name: str,
    *,
    output: str,
    smoothing: float,
    device: torch.device,
    needed_by: str = "",
) -> Task | None:
    """Give a task by name; for ``auto``, the one that the first batch speaks of, None when it holds no truth.

    Args:
        data: Rows to learn from.
        teacher: In evaluation mode, on the device.
        name: As recipes have it.
        output: The output that the truth is about; the first one when empty.
        smoothing: Share of the truth's certainty that is spread over all classes.
        device: Where the teacher is.
        needed_by: What asks for a truth, for errors; empty when there need be none.

    Raises:
        StageError: When the truth is missing, or cannot be what the task needs.
    """
    inputs, beside = split(data.labelled(), device)
    truth = beside.get(TRUTH)
    if truth is None:
        if not needed_by:
            return None
        raise lacking(data, "the data", needed_by)
    if name == "auto":
        with torch.no_grad(), models.blamed("the teacher fails on the data"):
            given = call(teacher, inputs)
        name = tasks.guess(truth, given[tasks.chosen(given, output)])
    tasks.check(name, truth, data.target or "")
    return tasks.named(name, output, smoothing)


def lacking(data: Rows, what: str, needed_by: str) -> StageError:
    """Say that some data have no truth, which something asks for."""
    return StageError(
        f"{what} have no column '{data.target}', which {needed_by} asks for",
        then=did_you_mean(data.target or "", data.others()) or "name the column of the truth as `target`",
    )


def judged_by_truth(data: Rows) -> Rows:
    """Pass on rows that judge a student by their truth.

    Raises:
        StageError: When they have none.
    """
    if data.target is not None and TRUTH not in data.labelled():
        raise lacking(data, "the evaluation data", "the task")
    return data


def expect_same_outputs(student: nn.Module, teacher: nn.Module, data: Rows, device: torch.device) -> None:
    """Check on the first batch that a student gives what its teacher gives; both are on the device.

    Raises:
        StageError: Naming the outputs, or the shapes, that differ.
    """
    inputs, _ = split(data.labelled(), device)
    with torch.no_grad(), models.blamed("teacher and student cannot be compared"):
        outputs.compatible(call(student, inputs), call(teacher, inputs))


def imitation(
    teacher: nn.Module, student: nn.Module | None, data: Rows, task: Task | None, *, wish: Wish, device: torch.device
) -> Imitation:
    """Plan what is compared, by looking at the first batch.

    Args:
        teacher: In evaluation mode, on the device; its weights are laid out as they are read fastest.
        student: Likewise; None for one that is yet to be made, of which only outputs can be imitated.
        data: What is learnt from.
        task: What the truth says.
        wish: What is to be imitated.
        device: Where everything runs.

    Raises:
        StageError: When there is nothing to learn, or teacher and student do not fit each other.
    """
    if task is None and wish.alpha == 0:
        raise StageError("alpha is 0 and the data hold no truth: there is nothing to learn", then="set alpha")
    inputs, beside = split(data.labelled(), device)
    layout.settle(teacher, inputs)
    compared = Outputs(task, wish.distances, wish.temperature)
    found: dict[Name, tuple[Aspect, Taps]] = {"outputs": (compared, ((), ())), "similarity": (Similarity(), ((), ()))}
    if student is not None:
        with torch.no_grad(), models.blamed("teacher and student cannot be compared"):
            outputs.compatible(call(student, inputs), call(teacher, inputs))
            found |= _Pair(student, teacher, question(inputs, {}, wish.mask)).inner(wish)
    absent = tuple(name for name in wish.weights if name in wish.yielding and name not in found)
    parts = {name: (weight, *found[name]) for name, weight in wish.weights.items() if name not in absent}
    made = replace(_together(parts, teacher, compared, wish), task=task, absent=absent)
    if student is not None:
        with torch.no_grad(), models.blamed("the losses cannot be computed"):
            made.losses(student, inputs, beside)  # what is wrong with them is better known now than after an epoch
    return made


def _together(
    parts: Mapping[Name, tuple[float, Aspect, Taps]], teacher: nn.Module, compared: Outputs, wish: Wish
) -> Imitation:
    mine, theirs = (tuple(tap for _, _, taps in parts.values() for tap in taps[side]) for side in (0, 1))
    aspects = {name: (weight, aspect) for name, (weight, aspect, _) in parts.items()}
    learned = [aspect.projections for _, aspect in aspects.values() if isinstance(aspect, Features)]
    return Imitation(
        Told(teacher, theirs),
        compared,
        aspects,
        alpha=wish.alpha,
        mask=wish.mask,
        taps=(mine, theirs),
        learned=next(iter(learned), None),
    )


@dataclass(frozen=True)
class _Pair:
    """A student and its teacher, side by side on one batch."""

    student: nn.Module
    teacher: nn.Module
    question: Question

    def inner(self, wish: Wish) -> dict[Name, tuple[Aspect, Taps]]:
        """Plan what is compared inside the models, and say where to look."""
        found: dict[Name, tuple[Aspect, Taps]] = {}
        if "features" in wish.weights:
            pairs = wish.features or self._matched(gives_way="features" in wish.yielding)
            if pairs:
                found["features"] = self.features(pairs)
        if "relations" in wish.weights:
            found["relations"] = self.relations(wish.relations)
        return found

    def features(self, pairs: Sequence[Pair]) -> tuple[Features, Taps]:
        """Find out what projections the features need."""
        for mine, theirs in pairs:
            at(self.student, mine, "student")
            at(self.teacher, theirs, "teacher")
        taps = (tuple(Tap(mine) for mine, _ in pairs), tuple(Tap(theirs) for _, theirs in pairs))
        seen, told = (
            watch(self.student, self.question.inputs, taps[0]),
            watch(self.teacher, self.question.inputs, taps[1]),
        )
        return features.planned(pairs, seen, told, self.question), taps

    def _matched(self, *, gives_way: bool) -> Sequence[Pair]:
        """Pair the blocks that belong together."""
        found = matching.blocks(self.student, self.teacher)
        inputs = self.question.inputs
        mine, theirs = survey(self.student, inputs, found[0]), survey(self.teacher, inputs, found[1])
        pairs = matching.matched(mine, theirs)
        if not pairs and not gives_way:
            raise matching.none_found(len(mine), len(theirs))
        return pairs

    def relations(self, wanted: Sequence[Pair]) -> tuple[Relations, Taps]:
        """Find queries, keys and values, of the last attention where none is named."""
        pairs = wanted or [(attention.last(self.student, "student"), attention.last(self.teacher, "teacher"))]
        mine = [attention.named(self.student, path, "student") for path, _ in pairs]
        theirs = [attention.named(self.teacher, path, "teacher") for _, path in pairs]
        taps = (tuple(tap for three in mine for tap in three), tuple(tap for three in theirs for tap in three))
        return Relations(tuple(zip(mine, theirs, strict=True))), taps
