"""The input that tells which positions of a row are padded: those do not count, whatever is measured or learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.errors import StageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec


def chosen(asked: str, inputs: Mapping[str, TensorSpec]) -> str | None:
    """Choose the input that says which positions are real.

    Args:
        asked: Its name; ``auto`` for the matrix of rows and positions whose name says that it is a mask, ``none`` for
            none.
        inputs: The model's inputs.

    Raises:
        StageError: When there is no such input, it cannot be a mask, or several could be.
    """
    if asked == "none":
        return None
    able = [name for name, spec in inputs.items() if np.dtype(spec.dtype).kind in "iub"]
    if asked != "auto":
        if asked not in able:
            hint = did_you_mean(asked, able) or "a mask is an input of whole numbers; or say `mask: none`"
            raise StageError(f"the model has no input '{asked}' that could be a mask", where="mask", then=hint)
        return asked
    found = [name for name in able if "mask" in name.lower() and len(inputs[name].shape) == 2]
    if len(found) > 1:
        raise StageError(
            f"several inputs could say which positions are padded: {', '.join(found)}",
            then="name one as `mask:`, or say `mask: none`",
        )
    return found[0] if found else None


def real(name: str, feed: Feed) -> NDArray[np.bool_]:
    """Give which positions are real, in the mask's shape.

    Raises:
        StageError: When the mask holds anything but 0 and 1.
    """
    values = feed[name]
    if values.size and not ((values == 0) | (values == 1)).all():
        raise unclear(name)
    return values.astype(np.bool_)


def unclear(name: str) -> StageError:
    """Say that a mask holds anything but 0 and 1."""
    return StageError(
        f"the mask '{name}' holds values other than 0 and 1",
        then="if it does not tell padded positions, say `mask: none`",
    )
