"""What quantization and conversion get wrong without a word, one check a file.

They are functions of a model and a few rows, pure but for the clock that `speed` reads. One that cannot
be made says why; it never passes in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics.checks import (
    activations,
    batch,
    collapse,
    correction,
    coverage,
    depthwise,
    leftovers,
    levels,
    padding,
    saturation,
    shapes,
    size,
    speed,
)
from modelpack.numerics.checks.finding import Finding, unchecked
from modelpack.numerics.checks.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

__all__ = ["CHECKS", "Finding", "Subject", "accept", "examine"]

CHECKS: Mapping[str, Callable[[Subject], Finding]] = {
    "levels": levels.check,
    "coverage": coverage.check,
    "size": size.check,
    "leftovers": leftovers.check,
    "shapes": shapes.check,
    "activations": activations.check,
    "depthwise": depthwise.check,
    "batch": batch.check,
    "padding": padding.check,
    "correction": correction.check,
    "collapse": collapse.check,
    "saturation": saturation.check,
    "speed": speed.check,
}
"""Name → function; each one's first line says what it finds to be true when all is well."""


def examine(
    subject: Subject,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[Finding]:
    """Make the checks.

    Args:
        subject: The model.
        only: Names of checks to make; all when None.
        skip: Names of checks to leave out.
        track: Passes their names through, showing progress.
    """
    chosen = [name for name in CHECKS if (only is None or name in only) and name not in skip]
    return [replace(_answer(name, subject), check=name) for name in track(chosen)]


def _answer(name: str, subject: Subject) -> Finding:
    try:
        return CHECKS[name](subject)
    except StageError as error:
        return unchecked(str(error).replace("\n ", ";"))


def accept(
    findings: Iterable[Finding], tolerated: Collection[str] = (), remedies: Mapping[str, str] | None = None
) -> list[str]:
    """Accept a model that no check fails.

    Args:
        findings: What the checks found.
        tolerated: Names of checks whose failure deserves a look only.
        remedies: Check → what helps, where the caller knows better than the check.

    Returns:
        What deserves a look, one sentence each.

    Raises:
        StageError: With cause and remedy of the first failure.
    """
    looks = []
    for item in findings:
        if item.verdict == "failed" and item.check not in tolerated:
            remedy = (remedies or {}).get(item.check, item.remedy)
            raise StageError(f"{item.cause} (check '{item.check}')", where=item.where, then=remedy)
        if item.verdict in ("warning", "failed"):
            looks.append(f"{item.check}: {item.cause}; {item.remedy}")
    return looks
