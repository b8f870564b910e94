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
    size, memory = count(lesson.data.labelled()), None
    if limit and variants:
        taps = [[tap.path, tap.take.__qualname__] for tap in objective.taps[1]]
        memory = Memory(
            room,
            limit,
            canonical.encode([teacher, taps]).decode(),
            learnt=lambda: variants * lesson.data.steps * size,
            judged=functools.cache(lambda: _rows(lesson.held_out)),
        )
    teaching = Answers(objective.teacher, -(-size // crew.size()), memory)
    return replace(lesson, objective=replace(objective, teacher=teaching))


def _rows(data: Rows | None) -> int:
    return sum(map(count, data.picked())) if data is not None else 0


def remembered(lesson: Lesson) -> Use | None:
    """Say at the end what memory was good for, and let go of it; None where a lesson has none."""
    teacher = lesson.objective.teacher if isinstance(lesson.objective, Imitation) else None
    if not isinstance(teacher, Answers) or teacher.memory is None:
        return None
    teacher.close()
    return teacher.use
