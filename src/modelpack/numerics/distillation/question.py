"""What one batch asks of a student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError
from modelpack.numerics import masks
from modelpack.numerics.training.batches import TRUTH, own_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

IGNORED = -100
"""Class that marks places which do not count, as in torch's own losses."""


@dataclass(frozen=True)
class Question:
    """What one batch asks of a student.

    Attributes:
        inputs: The model's inputs.
        beside: The columns beside them, by their keys in a picked batch.
        real: ``[rows, positions]``, false where the mask hides a padded position; None when all positions count.
    """

    inputs: dict[str, Tensor]
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    real: Tensor | None = None

    @property
    def truth(self) -> Tensor | None:
        """The column of the truth, where there is one."""
        return self.beside.get(TRUTH)

    @property
    def columns(self) -> dict[str, Tensor]:
        """All columns that there are, by their names in the data."""
        return {**self.inputs, **{own_name(key): column for key, column in self.beside.items()}}

    @property
    def known(self) -> Tensor:
        """The truth, for those who cannot do without.

        Raises:
            StageError: When there is none.
        """
        if self.truth is None:
            raise StageError("the data have no truth, which the task needs", then="set target, or say `task: none`")
        return self.truth

    @property
    def classes(self) -> Tensor:
        """The truth as class numbers, `IGNORED` where the mask hides their position."""
        classes = self.known.long()
        if self.real is None or classes.shape != self.real.shape:
            return classes
        return torch.where(self.real, classes, IGNORED)

    def kept(self, value: Tensor) -> Tensor:
        """Give the real positions of values ``[rows, positions, …]``, one after another; other values as they are."""
        return value[self.real] if self._covers(value) else value

    def blanked(self, value: Tensor) -> Tensor:
        """Give values ``[rows, positions, …]`` with zeros at positions that are not real; other values as they are."""
        if self.real is None or not self._covers(value):
            return value
        return value * self.real.reshape(*self.real.shape, *[1] * (value.ndim - 2))

    def _covers(self, value: Tensor) -> bool:
        # A matrix has no positions: the number of its columns may equal that of the mask by chance.
        return self.real is not None and value.ndim > 2 and value.shape[:2] == self.real.shape

    def kept_along(self, value: Tensor, axis: int) -> Tensor:
        """Give values as ``[…, width]``, their width moved from `axis`, and only real positions of those before it."""
        return self.kept(value.movedim(axis, -1)) if value.ndim > 1 else value


def question(inputs: dict[str, Tensor], beside: Mapping[str, Tensor], mask: str | None) -> Question:
    """Read a batch, whose input `mask` is 1 at real positions and 0 at padded ones.

    Raises:
        StageError: When the mask holds anything else, or does not speak of rows and positions.
    """
    if mask is None:
        return Question(inputs, beside)
    given = inputs[mask]
    values = given.reshape(len(given), -1)
    if values.numel() != given.shape[0] * given.shape[-1]:
        raise StageError(
            f"the mask '{mask}' has the shape {list(given.shape)}, not [rows, positions]",
            then="name the right input as `mask:`, or say `mask: none`",
        )
    if not bool(((values == 0) | (values == 1)).all()):
        raise masks.unclear(mask)
    return Question(inputs, beside, values.bool())
