"""Texts with some of their words replaced (word dropout; Devlin et al. 2019 mask words this way)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelpack.numerics.training.augmentation.draws import Draws


@dataclass(frozen=True)
class Replaced:
    """Which tokens are replaced, and by what.

    Attributes:
        input: Name of the input that holds them, ``[rows, positions]`` integers.
        share: Part of the tokens that is replaced, on average.
        by: The token put in their place; another token of the same row when None.
        keep: Tokens that stay where they are and go nowhere else, such as those of padding.
    """

    input: str
    share: float
    by: int | None = None
    keep: tuple[int, ...] = ()


def replaced(tokens: NDArray[np.generic], draws: Draws, wanted: Replaced) -> NDArray[np.generic]:
    """Replace tokens at random places of every row."""
    rows, length = tokens.shape
    chosen = (draws.uniform("replaced", count=length) < wanted.share) & ~np.isin(tokens, wanted.keep)
    if wanted.by is not None:
        return np.where(chosen, np.asarray(wanted.by, tokens.dtype), tokens)
    places = (draws.uniform("instead", count=length) * length).astype(np.int64)
    others = tokens[np.arange(rows)[:, None], places]
    return np.where(chosen & ~np.isin(others, wanted.keep), others, tokens)
