"""What counts as good where models are compared."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from pruners import Loss
    from torch import Tensor


def same_class(found: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Say of each row whether the highest score (rows, classes) is that of its class (rows,)."""
    return found.argmax(1) == truth


def same_direction(found: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Give the cosine of each row's vector and the true one, both (rows, width)."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
    return (found * truth).sum(1) / lengths


def apart(found: Tensor, truth: Tensor) -> Tensor:
    """Give how far vectors of length 1 point from the true ones."""
    return 1 - functional.cosine_similarity(found, truth).mean()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What counts as good.

    Attributes:
        name: Of the figure.
        truth: The data's own `labels`, or what the original gives: its `classes` or its `outputs`.
        score: Outputs and truth → a figure for each row.
        loss: The same for fine-tuning.
    """

    name: str
    truth: str
    score: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    loss: Loss


ACCURACY = Judgement("accuracy", "labels", same_class, functional.cross_entropy)
AGREEMENT = Judgement("agreement", "classes", same_class, functional.cross_entropy)
CLOSENESS = Judgement("cosine to the original", "outputs", same_direction, apart)
