"""Rows on their way to training: picked, shuffled the same way every time, cut into equal batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

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
Column = TypeVar("Column")

_NUMBERS = "biuf"
"""Kinds of numpy's types that can be computed with."""

_WINDOW = 512 * 2**20
"""Bytes of rows that are shuffled together and, where all data fit, kept for the next epoch."""


_BESIDE = " "
"""What begins the keys of columns that are no inputs in a picked batch; no input's name begins so."""

TRUTH = f"{_BESIDE}truth"
"""Key of the truth, where one column is that."""


@dataclass
class Rows:
    """The columns that training needs of a source of batches.

    Attributes:
        read: Reads all batches once more, from the start.
        inputs: The model's inputs.
        target: Column of the truth; None to leave it out even where the data have it.
        beside: Whether all columns of numbers that are no inputs come along instead, under their own names.
    """

    read: Callable[[], Iterable[Arrays]]
    inputs: Mapping[str, TensorSpec]
    target: str | None
    beside: bool = False
    window: int = _WINDOW
    _kept: _Window | None = field(default=None, init=False)
    _parted: bool = field(default=False, init=False)
    _steps: int | None = field(default=None, init=False)

    @property
    def steps(self) -> int:
        """How many batches one pass of `shuffled` gives; counted by reading once where not all rows fit."""
        if self._steps is None:
            self._steps = sum(len(window.cuts) - 1 for window in self._windows())
        return self._steps

    @property
    def fits(self) -> bool:
        """Whether all rows are shuffled together, as far as they were read."""
        return not self._parted

    def picked(self) -> Iterator[Arrays]:
        """Read batches of inputs, and of what is wanted beside them, in the source's order.

        Raises:
            StageError: For a missing or unfit column.
        """
        for batch in self.read():
            chosen: Arrays = rows.feed(batch, self.inputs)
            yield chosen | self._columns(batch)

    def _columns(self, batch: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Pick what is wanted beside the inputs."""
        if self.beside:
            others = {name: np.asarray(column) for name, column in batch.items() if name not in self.inputs}
            return {f"{_BESIDE}{name}": column for name, column in others.items() if column.dtype.kind in _NUMBERS}
        return {TRUTH: np.asarray(batch[self.target])} if self.target is not None and self.target in batch else {}

    def labelled(self) -> Arrays:
        """Give the first batch, to see whether there is a truth and of what type.

        Raises:
            StageError: When there are no rows.
        """
        first = next(self.picked(), None)
        if first is None or not len(next(iter(first.values()))):
            raise StageError("the data hold no rows")
        return first

    def others(self) -> list[str]:
        """Name the columns of the data that are no inputs."""
        return [name for name in next(iter(self.read()), {}) if name not in self.inputs]

    def shuffled(self, seed: int) -> Iterator[Arrays]:
        """Read batches in an order that follows from the seed; batches of the size of the source's first one.

        A last row that would be alone joins the batch before it: batch norms cannot learn from one. The arrays are
        the caller's to keep or change.
        """
        generator = np.random.default_rng(seed)
        for window in self._windows():
            yield from window.shuffled(generator)

    def _windows(self) -> Iterator[_Window]:
        """Read rows in windows that are shuffled by themselves; one that holds all rows is kept."""
        if self._kept is not None:
            yield self._kept
            return
        held: list[Arrays] = []
        size = 0
        for batch in self.picked():
            held.append(batch)
            size += sum(array.nbytes for array in batch.values())
            if size >= self.window:
                self._parted = True
                yield _Window(held)
                held, size = [], 0
        if not self._parted:
            self._kept = _Window(held)
            yield self._kept
        elif held:
            yield _Window(held)


class _Window:
    """Rows that are shuffled together where all have one shape, else whole batches.

    Attributes:
        cuts: Where batches begin, and where the last one ends.
    """

    def __init__(self, held: list[Arrays]) -> None:
        """Take batches over; they are emptied."""
        uniform = len({tuple((name, array.shape[1:]) for name, array in batch.items()) for batch in held}) == 1
        sizes = [count(batch) for batch in held]
        self._whole = [] if uniform else [dict(batch) for batch in held]
        self._columns: Arrays = {}
        if uniform:
            for name in list(held[0]):
                self._columns[name] = np.concatenate([batch.pop(name) for batch in held])
        self.cuts = _cuts(sum(sizes), sizes[0]) if uniform else list(range(len(held) + 1))

    def shuffled(self, generator: np.random.Generator) -> Iterator[Arrays]:
        """Give its rows in another order, in batches."""
        order = generator.permutation(self.cuts[-1])
        for begin, end in itertools.pairwise(self.cuts):
            if self._whole:
                yield {name: array.copy() for name, array in self._whole[order[begin]].items()}
            else:
                yield {name: column.take(order[begin:end], axis=0) for name, column in self._columns.items()}


def _cuts(total: int, size: int) -> list[int]:
    """Cut rows into batches of one size, the last one smaller, or larger by a row that would be alone."""
    cuts = [*range(0, total, size), total]
    if len(cuts) > 2 and size > 1 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    return cuts


def count(batch: Mapping[str, NDArray[np.generic]]) -> int:
    """Count the rows of a batch."""
    return len(next(iter(batch.values())))


def head(batch: Arrays, rows: int) -> Arrays:
    """Give the first rows of a batch, as copies."""
    return {name: array[:rows].copy() for name, array in batch.items()}


def apart(batch: Mapping[str, Column]) -> tuple[dict[str, Column], dict[str, Column]]:
    """Tell the inputs of a picked batch from the columns beside them."""
    beside = {name: column for name, column in batch.items() if name.startswith(_BESIDE)}
    return {name: column for name, column in batch.items() if name not in beside}, beside


def own_name(key: str) -> str:
    """Give the name that a column beside the inputs has in the data."""
    return key.removeprefix(_BESIDE)


def split(
    batch: Mapping[str, NDArray[np.generic]], device: torch.device, *, shared: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turn a picked batch into the model's inputs and the columns beside them, on a device.

    Args:
        batch: The arrays.
        device: Where the tensors are to be.
        shared: Whether others hold the arrays too, so that tensors a module may write into must be copies.
    """
    return apart({name: _tensor(array, device, shared) for name, array in batch.items()})


def _tensor(array: NDArray[np.generic], device: torch.device, shared: bool) -> Tensor:
    if device.type == "cuda":
        return torch.tensor(array).pin_memory().to(device, non_blocking=True)
    return torch.tensor(array, device=device) if shared else torch.from_numpy(array)


def limited(data: Rows, limit: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Read the first rows as tensors on a device, in the source's order: inputs, and what is wanted beside them."""
    seen = 0
    for batch in data.picked():
        taken = {name: _tensor(array, device, shared=True) for name, array in head(batch, limit - seen).items()}
        yield taken
        seen += max(len(value) for value in taken.values())
        if seen >= limit:
            return
