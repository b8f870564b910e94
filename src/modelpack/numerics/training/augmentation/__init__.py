"""Augmentation: rows that differ a little from those of the data, the same ones whenever they are asked for.

What happens to a row follows from the seed, the row's own bytes and the variant: not from the batch it is in, the
process that reads it, or what came before. So a killed run goes on with the same rows, and a teacher's answers to them
can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from modelpack.errors import StageError, did_you_mean
from modelpack.numerics.training.augmentation import cutout, draws, geometry, light, mixup, tokens
from modelpack.numerics.training.augmentation.tokens import Replaced
from modelpack.numerics.training.augmentation.wanted import Wanted
from modelpack.numerics.training.batches import TRUTH, apart, own_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.training.augmentation.draws import Draws
    from modelpack.numerics.training.batches import Arrays, Rows

__all__ = ["Augmentation", "Replaced", "Wanted"]

_CHANNELS = 4
"""The most channels that a last dimension is taken for, where the second one is larger."""


@dataclass(frozen=True)
class Augmentation:
    """Changes rows on their way to training.

    Attributes:
        wanted: Which changes are made.
        data: Where rows come from; with mixup, its first ones are mixed into others.
        seed: Other seeds change rows otherwise.
    """

    wanted: Wanted
    data: Rows = field(repr=False)
    seed: int

    def __call__(self, batch: Arrays, epoch: int) -> Arrays:
        """Give the rows of a batch as they are in an epoch, counted from 1; columns beside the inputs stay.

        Raises:
            StageError: When the inputs or these columns do not fit what is wanted.
        """
        wanted = self.wanted
        inputs, _ = apart(batch)
        self.check(batch)
        variant = (epoch - 1) % wanted.variants if wanted.variants else epoch - 1
        numbers = draws.for_rows(list(inputs.values()), self.seed, variant)
        for name in _images(inputs) if wanted.images else ():
            inputs[name] = _changed(inputs[name], numbers, wanted)
        if wanted.mixup:
            inputs |= mixup.mixed(inputs, self._pool, numbers, wanted.mixup)
        if wanted.tokens is not None:
            inputs[wanted.tokens.input] = tokens.replaced(inputs[wanted.tokens.input], numbers, wanted.tokens)
        return {**batch, **inputs}

    @cached_property
    def _pool(self) -> Arrays:
        return mixup.pool(self.data.picked(), self.data.inputs)

    def check(self, batch: Arrays) -> None:
        """See whether rows can be changed so.

        Raises:
            StageError: When the inputs or the columns beside them do not fit what is wanted.
        """
        wanted = self.wanted
        inputs, beside = apart(batch)
        if wanted.images and not _images(inputs):
            raise StageError(
                f"only images can be augmented so, and {_described(inputs)}",
                where="augment",
                then="images are floats of the shape [rows, channels, height, width]; for token ids, use `tokens`",
            )
        for name, column in beside.items() if wanted.moves else ():
            if column.ndim > 2:
                raise StageError(
                    f"{_called(name)} has the shape {list(column.shape[1:])} a row: it says something of places, "
                    "and these would be moved in the images alone",
                    where="augment",
                    then="leave out flip, shift, scale and rotate, or say `task: none`",
                )
        if wanted.mixup:
            _check_mixup(inputs, beside)
        if wanted.tokens is not None:
            _check_tokens(inputs, wanted.tokens)


def _check_mixup(inputs: Arrays, beside: Arrays) -> None:
    if beside:
        raise StageError(
            f"{_called(next(iter(beside)))} says nothing of a mixture of two rows",
            where="augment",
            then="leave mixup out, or say `task: none`: the teacher knows",
        )
    whole = [name for name, column in inputs.items() if not np.issubdtype(column.dtype, np.floating)]
    if whole:
        raise StageError(f"'{whole[0]}' holds no floats, which could be mixed", where="augment", then="leave mixup out")


def _called(key: str) -> str:
    return "the truth" if key == TRUTH else f"the column '{own_name(key)}'"


def _check_tokens(inputs: Arrays, wanted: Replaced) -> None:
    if wanted.input not in inputs:
        raise StageError(
            f"the model has no input '{wanted.input}'", where="augment", then=did_you_mean(wanted.input, inputs)
        )
    column = inputs[wanted.input]
    if column.ndim != 2 or not np.issubdtype(column.dtype, np.integer):
        raise StageError(
            f"only integers of the shape [rows, positions] are tokens, and {_described({wanted.input: column})}",
            where="augment",
            then="name the input that holds token ids as `input:`",
        )


def _images(inputs: Mapping[str, NDArray[np.generic]]) -> Sequence[str]:
    """Name the inputs that are images, channels first."""
    return [
        name
        for name, column in inputs.items()
        if column.ndim == 4
        and np.issubdtype(column.dtype, np.floating)
        and not column.shape[-1] <= _CHANNELS < column.shape[1]
    ]


def _described(inputs: Mapping[str, NDArray[np.generic]]) -> str:
    return ", ".join(f"'{name}' holds {c.dtype} {['rows', *c.shape[1:]]}" for name, c in inputs.items()).replace(
        "'rows'", "rows"
    )


def _changed(column: NDArray[np.generic], numbers: Draws, wanted: Wanted) -> NDArray[np.generic]:
    images = torch.from_numpy(column.astype(np.float64 if column.dtype == np.float64 else np.float32))
    if wanted.moves:
        images = geometry.moved(images, numbers, wanted)
    if wanted.lights:
        images = light.lit(images, numbers, wanted)
    if wanted.cutout:
        images = cutout.holed(images, numbers, wanted.cutout)
    return images.numpy().astype(column.dtype)
