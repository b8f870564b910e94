"""What becomes of an output on its way to the client: softmax, the largest values, their names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .signature import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Finish:
    """What is done with one output, along its last dimension.

    Attributes:
        softmax: Turn scores into probabilities first.
        top: Give so many of the largest values, largest first, and which they are; all in their order when 0.
        labels: Names that stand for positions; empty for the positions themselves.
    """

    softmax: bool = False
    top: int = 0
    labels: tuple[str, ...] = ()

    def tensors(self, tensor: Tensor) -> Iterator[Tensor]:
        """Give what the client sees in the output's place.

        Raises:
            ValueError: When this cannot be done with the output.
        """
        if not tensor.shape or not tensor.dtype.startswith("float"):
            raise ValueError(f"it is {tensor.dtype} {tensor.wanted}, and scores of classes are floating-point numbers")
        if not self.top:
            yield tensor
            return
        classes = tensor.shape[-1]
        if isinstance(classes, str):
            raise ValueError(f"its shape {tensor.wanted} does not say how many classes there are")  # noqa: TRY004
        if self.top > classes:
            raise ValueError(f"{self.top} of {classes} classes were asked for")
        if self.labels and len(self.labels) != classes:
            raise ValueError(f"there are {len(self.labels)} labels for {classes} classes")
        shape = (*tensor.shape[:-1], self.top)
        yield Tensor(tensor.name, shape, tensor.dtype)
        kind, dtype = ("label", "string") if self.labels else ("index", "int64")
        yield Tensor(f"{tensor.name}_{kind}", shape, dtype)

    def arrays(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Give the values of `tensors`; equal values keep their order, and NaN comes last."""
        values = softmax(array) if self.softmax else array
        if not self.top:
            yield values
            return
        order = np.argsort(-values, axis=-1, kind="stable")[..., : self.top]
        yield np.take_along_axis(values, order, axis=-1)
        yield self._names[order] if self.labels else order

    @cached_property
    def _names(self) -> np.ndarray:
        return np.array(self.labels, object)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Give probabilities along the last dimension; the largest score is taken off first, so that none overflows."""
    wide = scores.astype(np.promote_types(scores.dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore"):  # infinity minus infinity: not a number, which JSON shows as null
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares.astype(scores.dtype, copy=False)
