"""The output that the truth is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import StageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def chosen(outputs: Mapping[str, Tensor], name: str) -> str:
    """Give an output's name: the first one's when `name` is empty.

    Raises:
        StageError: When there is no such output.
    """
    name = name or next(iter(outputs))
    if name not in outputs:
        raise StageError(f"the model has no output '{name}'", then=did_you_mean(name, outputs))
    return name
