"""What a recipe allows the result to cost, and whether a measurement keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modelpack import quantities
from modelpack.bind import FromText

if TYPE_CHECKING:
    from pathlib import Path


def _fraction(value: object) -> object:
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


Fraction = Annotated[float, BeforeValidator(_fraction, json_schema_input_type=float | str)]
"""A number, or a percentage such as ``30%``."""


@dataclass(frozen=True)
class Size(FromText):
    """A limit on bytes: absolute, or a fraction of the original model."""

    spelled: ClassVar[str | list[str]] = ["string", "number"]
    bytes: int | None
    fraction: float | None
    text: str

    @classmethod
    def read(cls, text: str, base: Path) -> Size:  # noqa: ARG003 - a size names no file
        """Read ``30%``, ``0.3``, ``5 MB`` or ``750KiB``.

        >>> from pathlib import Path
        >>> Size.read("30%", Path()).fraction, Size.read("5 MB", Path()).bytes
        (0.3, 5000000)
        """
        text = text.strip()
        absolute = quantities.parsed_size(text)
        if absolute is not None:
            return cls(absolute, None, text)
        try:
            fraction = float(_fraction(text))  # type: ignore[arg-type]
        except ValueError:
            raise ValueError(f"'{text}' is no size: write '30%' of the original, or bytes such as '5 MB'") from None
        if not 0 < fraction < float("inf"):
            raise ValueError(f"'{text}' is no size: a fraction of the original must be above 0")
        return cls(None, fraction, text)

    def canonical(self) -> object:
        """Stand for the limit itself in every hash, not for its spelling."""
        return {"bytes": self.bytes, "fraction": self.fraction}


AT_MOST: frozenset[str] = frozenset({"accuracy_drop", "size", "latency_ms", "macs", "image_size"})
"""Lines whose measurement may not exceed the limit; every other line may not fall below it."""


class Budget(BaseModel):
    """Gates: checked as soon as they are measured, always before an image is built."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    accuracy_drop: Fraction | None = Field(
        None, description="Largest loss of accuracy against the reference, 0.01 = 1 pp."
    )
    accuracy: Fraction | None = Field(None, description="Smallest accuracy.")
    agreement: Fraction | None = Field(
        None, description="Smallest share of rows on which the reference's answer is given."
    )
    cosine: float | None = Field(None, description="Smallest mean cosine similarity with the reference's outputs.")
    sqnr_db: float | None = Field(None, description="Smallest signal-to-quantization-noise ratio, in decibels.")
    size: Size | None = Field(None, description="Largest model: '30%' of the original, or bytes such as '5 MB'.")
    macs: Fraction | None = Field(None, description="Largest part of the original's multiply-accumulates.")
    speedup: float | None = Field(None, description="Smallest ratio of the reference's latency to this one's.")
    latency_ms: float | None = Field(None, description="Largest median latency in milliseconds.")
    image_size: Size | None = Field(None, description="Largest image, uncompressed bytes such as '150 MB'.")

    def lines(self) -> dict[str, float | Size]:
        """Give the limits that are set, by name."""
        return {name: limit for name in type(self).model_fields if (limit := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Verdict:
    """One budget line held against its measurement.

    Attributes:
        name: The line.
        limit: The limit as shown to a user, such as ``≤ 30%``.
        measured: The figure, in the line's unit (a fraction for relative sizes).
        met: Whether the figure keeps the limit.
        step: The step that measured it.
    """

    name: str
    limit: str
    measured: float
    met: bool
    step: str

    @property
    def figure(self) -> str:
        """What was measured, in the unit of the limit."""
        return f"{self.measured * 100:.4g}%" if self.limit.endswith("%") else f"{self.measured:.4g}"

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return {
            "name": self.name,
            "limit": self.limit,
            "measured": self.measured,
            "met": self.met,
            "step": self.step,
        }


def judge(name: str, limit: float | Size, measured: float, *, step: str, original: int = 0) -> Verdict:
    """Hold one line against its measurement.

    Args:
        name: The budget line.
        limit: Its limit.
        measured: The figure; bytes for sizes.
        step: Who measured it.
        original: The original model's size in bytes, for relative sizes.
    """
    sign: Literal["≤", "≥"] = "≤" if name in AT_MOST else "≥"
    if isinstance(limit, Size):
        value = measured / original if limit.fraction is not None and original else measured
        bound = limit.fraction if limit.fraction is not None else float(limit.bytes or 0)
        return Verdict(name, f"≤ {limit.text}", value, value <= bound, step)
    met = measured <= limit if sign == "≤" else measured >= limit
    return Verdict(name, f"{sign} {limit:g}", measured, met, step)
