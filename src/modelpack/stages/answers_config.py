"""How much of the disk the answers of teachers may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modelpack.bind import FromText
from modelpack.quantities import parsed_size

if TYPE_CHECKING:
    from pathlib import Path


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
