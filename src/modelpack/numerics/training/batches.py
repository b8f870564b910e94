"""Rows on their way to training: picked, shuffled the same way every time, cut into equal batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from modelpack.errors import StageError
from modelpack.numerics import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from modelpack.tensors import TensorSpec

Arrays = dict[str, NDArray[np.generic]]

_WINDOW = 512 * 2**20
"""Bytes of rows that are shuffled together and, where all data fit, kept for the next epoch."""


@dataclass
class Rows:
    """The columns that training needs of a source of batches.

    Attributes:
        read: Reads all batches once more, from the start.
        inputs: The model's inputs.
        target: Column of the truth; None to leave it out even where the data have it.
    """

    read: Callable[[], Iterable[Arrays]]
    inputs: Mapping[str, TensorSpec]
    target: str | None
    window: int = _WINDOW
    _kept: list[Arrays] | None = field(default=None, init=False)
    _steps: int | None = field(default=None, init=False)

    @property
    def steps(self) -> int:
        """How many batches one pass of `shuffled` gives; counted by reading once."""
        if self._steps is None:
            self._steps = sum(1 for _ in self.shuffled(0))
        return self._steps

    @property
    def fits(self) -> bool:
        """Whether all rows were shuffled together, known after the first pass."""
        return self._kept is not None

    def picked(self) -> Iterator[Arrays]:
        """Read batches of inputs and truth in the source's order.

        Raises:
            StageError: For a missing or unfit column.
        """
        for batch in self.read():
            chosen: Arrays = rows.feed(batch, self.inputs)
            if self.target is not None and self.target in batch:
                chosen[TRUTH] = np.asarray(batch[self.target])
            yield chosen

    def labelled(self) -> Arrays:
        """Give the first batch, to see whether there is a truth and of what type.

        Raises:
            StageError: When there are no rows.
        """
        first = next(self.picked(), None)
        if first is None or not len(next(iter(first.values()))):
            raise StageError("the data hold no rows")
        return first

    def shuffled(self, seed: int) -> Iterator[Arrays]:
        """Read batches in an order that follows from the seed; batches of the size of the source's first one.

        A last batch of one row is left out: batch norms cannot learn from it.
        """
        generator = np.random.default_rng(seed)
        if self._kept is not None:
            yield from _mixed(self._kept, generator)
            return
        held: list[Arrays] = []
        windows = size = 0
        for batch in self.picked():
            held.append(batch)
            size += sum(array.nbytes for array in batch.values())
            if size >= self.window:
                yield from _mixed(held, generator)
                held, size, windows = [], 0, windows + 1
        if windows == 0:
            self._kept = held
        yield from _mixed(held, generator)


TRUTH = " truth"
"""Key of the truth in a picked batch; no input can have this name."""


def _mixed(held: list[Arrays], generator: np.random.Generator) -> Iterator[Arrays]:
    """Shuffle rows where all batches have rows of one shape, whole batches where they differ."""
    if len({tuple((name, array.shape[1:]) for name, array in batch.items()) for batch in held}) > 1:
        yield from (held[place] for place in generator.permutation(len(held)))
        return
    if not held:
        return
    size = len(next(iter(held[0].values())))
    starts = np.cumsum([0, *(len(next(iter(batch.values()))) for batch in held)])
    order = generator.permutation(int(starts[-1]))
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        if len(chosen) > 1 or len(order) == 1:
            yield {name: _gather(held, name, starts, chosen) for name in held[0]}


def _gather(held: list[Arrays], name: str, starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.generic]:
    batches = np.searchsorted(starts, chosen, side="right") - 1
    picked = [held[batch][name][row - starts[batch]] for batch, row in zip(batches, chosen, strict=True)]
    return np.stack(picked)


def split(batch: Mapping[str, NDArray[np.generic]], device: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
    """Turn a picked batch into the model's inputs and the truth, on a device."""
    tensors = {name: torch.tensor(array, device=device) for name, array in batch.items()}
    truth = tensors.pop(TRUTH, None)
    return tensors, truth


def limited(data: Rows, limit: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Read the first rows as tensors on a device, in the source's order: inputs, and the truth where it is wanted."""
    seen = 0
    for batch in data.picked():
        inputs, labels = split(batch, device)
        count = min(limit - seen, max(len(value) for value in inputs.values()))
        taken = {**inputs, **({} if labels is None else {TRUTH: labels})}
        yield {name: value[:count] for name, value in taken.items()}
        seen += count
        if seen >= limit:
            return
