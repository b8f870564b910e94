"""What a check says of a model: its verdict, and for a bad one a line of cause and a line of remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        verdict: ``warning`` is for what deserves a look but may be meant; ``not checked`` says why in `cause`.
        cause: What was seen, one sentence without a full stop.
        remedy: What to do about it.
        where: The layers, inputs or outputs concerned.
        check: Name of the check.
    """

    verdict: Verdict
    cause: str = ""
    remedy: str = ""
    where: str = ""
    check: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the finding as one JSON object."""
        return asdict(self)


def passed(cause: str = "") -> Finding:
    """Say that all is well."""
    return Finding("ok", cause)


def failed(cause: str, remedy: str, where: str = "") -> Finding:
    """Say what is wrong and what helps."""
    return Finding("failed", cause, remedy, where)


def warned(cause: str, remedy: str, where: str = "") -> Finding:
    """Say what deserves a look."""
    return Finding("warning", cause, remedy, where)


def unchecked(why: str) -> Finding:
    """Say why nothing can be said."""
    return Finding("not checked", why)
