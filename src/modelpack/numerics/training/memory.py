"""What to do when a batch does not fit in the device's memory."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Protocol

import torch

from modelpack.errors import StageError
from modelpack.numerics.training.batches import count, head
from modelpack.numerics.training.sharing import Share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.numerics.training.batches import Arrays


class Trial(Protocol):
    """What can be tried with fewer rows."""

    def backward(self, batch: Arrays, share: Share, total: int) -> object:
        """Compute gradients."""

    def forget(self) -> None:
        """Let them go."""


@contextlib.contextmanager
def explained(trial: Trial, batch: Arrays, share: Share) -> Iterator[None]:
    """Turn torch's word that memory is full into a `StageError` that names the batch that fits."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Whoever threw it in here keeps it alive, and its frames the activations that filled the memory.
        traceback.clear_frames(error.__traceback__)
    else:
        return
    rows, fits = share.of, largest(trial, batch, share)
    if fits == 0:
        raise StageError(
            f"the device's memory is too small to train on one row (the batches have {rows})",
            then="set `checkpoint_activations: true`, or use a lower `precision`, or another device",
        )
    raise StageError(
        f"the device's memory is too small to train on batches of {rows} rows; {fits} fit",
        then=f"set `batch: {fits}` of the data and `accumulate: {-(-rows // fits)}`: the steps stay as large as they "
        "were; or set `checkpoint_activations: true`",
    )


@contextlib.contextmanager
def enough() -> Iterator[None]:
    """Turn torch's word that there is no memory for a step of the optimizer into a `StageError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            "the device's memory is too small for what the optimizer remembers of every parameter",
            then="use `optimizer: sgd`, which remembers half as much, smaller batches with `accumulate`, or several "
            "processes with `parallel: fsdp`",
        ) from error


def largest(trial: Trial, batch: Arrays, share: Share) -> int:
    """Find by halving how many rows of a batch can be trained on; 0 for none.

    A crew computes together, so that one process cannot try alone: it is told half of the batch that all share.
    """
    if share.parts > 1:
        return share.of // 2
    rows = count(batch) // 2
    while rows:
        if _fits(trial, head(batch, rows), Share(rows, rows)):
            return rows
        rows //= 2
    return 0


def _fits(trial: Trial, batch: Arrays, share: Share) -> bool:
    trial.forget()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        trial.backward(batch, share, share.of)
    except torch.OutOfMemoryError:
        return False
    finally:
        trial.forget()
    return True
