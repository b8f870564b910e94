"""Which rows a teacher is asked about, and how many of its answers are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from modelpack.bind import FromText
from modelpack.quantities import parsed_size
from modelpack.stage import Job, StageConfig
from modelpack.stages.augment_config import AugmentConfig, augmentation

if TYPE_CHECKING:
    from pathlib import Path

    from modelpack.numerics.training import Lesson


@dataclass(frozen=True)
class Kept(FromText):
    """Bytes that the answers of teachers may take on the disk; what is learned from them is the same for any number.

    Attributes:
        bytes: 0 to keep none.
        text: What the user wrote.
    """

    wanted: ClassVar[str] = "write bytes such as '2 GiB', or 'off'"
    spelled: ClassVar[str | list[str]] = ["string", "number"]
    bytes: int
    text: str

    @classmethod
    def read(cls, text: str, base: Path | None = None) -> Kept:  # noqa: ARG003 - it names no file
        """Read ``2 GiB``, ``500 MB``, ``0`` or ``off``.

        >>> Kept.read("2 GiB").bytes, Kept.read("off").bytes
        (2147483648, 0)
        """
        text = text.strip()
        found = 0 if text in ("0", "off", "false", "no") else parsed_size(text)
        if found is None:
            raise ValueError(f"'{text}' is no size: {cls.wanted}")
        return cls(found, text)

    def canonical(self) -> object:
        """Stand for nothing in any hash: results do not depend on it."""
        return None

    def __str__(self) -> str:
        return self.text


class AnswersConfig(StageConfig):
    """Which rows a teacher is asked about, and how many of its answers are kept."""

    augment: AugmentConfig | None = Field(
        None, description="Change rows a little on their way to training, the same way whenever they are asked for."
    )
    cache: Kept = Field(
        Kept.read("2 GiB"),
        description="Disk that teachers' answers may take, so that no row is asked about twice, or off. The result is "
        "the same.",
    )

    @model_validator(mode="after")
    def _kept(self) -> Self:
        if self.augment and not self.augment.variants and self.cache.bytes and "cache" in self.model_fields_set:
            raise ValueError("`cache` does nothing with `variants: 0`, where no row comes back: leave one of them out")
        return self


def remembering(config: AnswersConfig, job: Job, lesson: Lesson, teacher: str) -> Lesson:
    """Change the rows of a lesson, and keep its teacher's answers, as the settings say.

    Raises:
        StageError: When the rows cannot be changed so.
    """
    from modelpack.numerics import distillation

    variants = config.augment.variants if config.augment else 1
    if config.augment:
        change = augmentation(config.augment, lesson.data, job.seed)
        change.check(lesson.data.labelled())
        lesson = replace(lesson, change=change)
    return distillation.remembering(
        lesson, job.shared / "answers", config.cache.bytes, teacher=teacher, variants=variants
    )
