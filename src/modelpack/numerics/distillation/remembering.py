"""A lesson whose teacher remembers."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from modelpack import canonical
from modelpack.numerics.distillation.answers import Answers, Memory, Use
from modelpack.numerics.distillation.imitation import Imitation
from modelpack.numerics.training import crew
from modelpack.numerics.training.batches import count

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelpack.numerics.training.batches import Rows
    from modelpack.numerics.training.lesson import Lesson


def remembering(lesson: Lesson, room: Path, limit: int, *, teacher: str, variants: int = 1) -> Lesson:
    """Let a lesson's teacher keep its answers.

    Its answers have the same bits without memory, for it is asked the same numbers of rows.

    Args:
        lesson: Its objective is an imitation; any other has no teacher, and stays.
        room: Directory of the answers of all teachers.
        limit: Bytes that it may hold; 0 to keep none.
        teacher: Names the teacher: equal texts stand for equal answers.
        variants: How many versions there are of each row that is learnt from; 0 for a new one every time, which ends
            all remembering.
    """
    objective = lesson.objective
    if not isinstance(objective, Imitation):
        return lesson
    rows = -(-count(lesson.data.labelled()) // crew.size())
    memory = None
    if limit and variants:
        taps = [[tap.path, tap.take.__qualname__] for tap in objective.taps[1]]
        asked = canonical.encode([teacher, taps]).decode()
        memory = Memory(room, limit, asked, _beyond(lesson.data, lesson.held_out, variants))
    return replace(lesson, objective=replace(objective, teacher=Answers(objective.teacher, rows, memory)))


def remembered(lesson: Lesson) -> Use | None:
    """Give what memory was good for; None where a lesson has none."""
    teacher = lesson.objective.teacher if isinstance(lesson.objective, Imitation) else None
    return teacher.use if isinstance(teacher, Answers) and teacher.memory is not None else None


def _beyond(data: Rows, held_out: Rows | None, variants: int) -> Callable[[int], bool]:
    """Say how it is noticed that rows are drawn anew in every pass: there are more of them than the data hold.

    Args:
        data: What is learnt from.
        held_out: What judges it, where there is such.
        variants: How many versions there are of each row that is learnt from.
    """

    @functools.cache
    def passes() -> int:
        return 2 * variants * (data.steps + 1) * count(data.labelled())

    @functools.cache
    def judged() -> int:
        return sum(count(batch) for batch in held_out.picked()) if held_out is not None else 0

    return lambda seen: seen > passes() and seen > passes() + judged()
