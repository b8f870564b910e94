"""How the rows of a batch are dealt out to the processes of a crew, and what is computed over all of them.

Every process reads the same batches and takes its part of the rows of each. A loss that is a mean over rows, weighed by
`Share.weight` and averaged over the processes as torch's wrappers do with gradients, is the loss over the whole batch;
what a loss needs of all rows at once, it asks for here.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from modelpack.errors import StageError
from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from modelpack.numerics.training.batches import Arrays


@dataclass(frozen=True)
class Share:
    """A process's part of a batch.

    Attributes:
        rows: How many rows it takes that count; a process for which none is left computes with one that does not.
        of: How many rows the batch has.
        parts: How many processes share it.
    """

    rows: int = 1
    of: int = 1
    parts: int = 1

    @property
    def weight(self) -> float:
        """What this part's mean counts in the mean of all parts."""
        return self.rows * self.parts / self.of


_SHARE: contextvars.ContextVar[Share | None] = contextvars.ContextVar("share", default=None)


@contextlib.contextmanager
def taking(share: Share) -> Iterator[None]:
    """Let what is computed meanwhile be about all rows of a batch, of which this process holds a share."""
    token = _SHARE.set(share if share.parts > 1 else None)
    try:
        yield
    finally:
        _SHARE.reset(token)


def current() -> Share | None:
    """Give the share that this process computes with; None when it holds all rows."""
    return _SHARE.get()


def dealt(batches: Iterable[Arrays]) -> Iterator[tuple[Arrays, Share]]:
    """Give this process its rows of every batch.

    Raises:
        StageError: When the processes do not read the same batches.
    """
    parts, mine = crew.size(), crew.rank()
    if parts == 1:
        for batch in batches:
            yield batch, Share(_rows(batch), _rows(batch))
        return
    for batch in _abreast(batches):
        rows = _rows(batch)
        start, stop = mine * rows // parts, (mine + 1) * rows // parts
        chosen = slice(start, stop) if stop > start else slice(0, 1)
        yield {name: array[chosen] for name, array in batch.items()}, Share(stop - start, rows, parts)


def in_turn(batches: Iterable[Arrays]) -> Iterator[tuple[Arrays, bool]]:
    """Give this process every so many batches whole, and whether they count.

    A process for which none is left in the last round gets one that another one counts: a model whose parts lie with
    the processes can only be called by all of them at once.

    Raises:
        StageError: When the processes do not read the same batches.
    """
    parts, mine = crew.size(), crew.rank()
    if parts == 1:
        for batch in batches:
            yield batch, True
        return
    together = _abreast(batches)
    while group := list(itertools.islice(together, parts)):
        counts = mine < len(group)
        yield group[mine if counts else 0], counts


def expect_as_many(batches: int) -> None:
    """Check that every process reads as many batches in a pass: rows that were shuffled do not tell who lacks some.

    Raises:
        StageError: Naming a process that reads fewer.
    """
    counts = [count for (count,) in crew.compared([batches])]
    if len(set(counts)) > 1:
        raise _unlike("end early", counts, "it reads {} batches, rank {} reads {}")


def _unlike(what: str, counts: list[int], told: str) -> StageError:
    fewest, most = counts.index(min(counts)), counts.index(max(counts))
    return StageError(
        f"the data {what} on rank {fewest}: {told.format(counts[fewest], most, counts[most])}",
        then="a data source must give the same rows to every process: the same files on every host, "
        "and nothing drawn without its seed",
    )


def _abreast(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    """Pass batches through while every process reads the same one."""
    source = iter(batches)
    number = 0
    while True:
        number += 1
        batch = next(source, None)
        seen = crew.compared([0, 0] if batch is None else [_rows(batch), _sign(batch)])
        counts = [rows for rows, _ in seen]
        if len(set(counts)) > 1:
            what = "differ" if min(counts) else "end early"
            raise _unlike(what, counts, f"its batch {number} has {{}} rows, that of rank {{}} has {{}}")
        if len({sign for _, sign in seen}) > 1:
            raise StageError(
                f"the processes read different rows in batch {number}",
                then="a data source must give the same rows, in the same order, to every process",
            )
        if batch is None:
            return
        yield batch


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))


def _sign(batch: Arrays) -> int:
    """Sum up a batch's first and last rows: a cheap look at whether two processes read the same ones."""
    sign = 0
    for array in batch.values():
        for row in (array[:1], array[-1:]):
            sign = zlib.crc32(row.tobytes(), sign)
    return sign


def variance(values: Tensor) -> Tensor:
    """Give the variance (without correction) of values of any shape over all rows of the batch; not differentiable.

    The parts' means and variances are put together as in Chan, Golub and LeVeque (1979), which loses no digits.
    """
    values = values.detach().float()
    share = current()
    if share is None:
        return values.var(correction=0)
    mine = values.new_zeros(3)
    if share.rows and values.numel():
        mine = torch.stack([values.new_tensor(float(values.numel())), values.mean(), values.var(correction=0)])
    counts, means, variances = crew.stacked(mine).double().unbind(1)
    if not counts.sum():
        return values.new_tensor(0.0)
    mean = (counts * means).sum() / counts.sum()
    return ((counts * (variances + (means - mean) ** 2)).sum() / counts.sum()).float()


def extremes(low: Tensor, high: Tensor, widest: bool) -> tuple[Tensor, Tensor]:
    """Give the bounds of all rows of the batch: the widest of the parts', or their mean by rows; of shape ()."""
    share = current()
    if share is None:
        return low, high
    rows = crew.stacked(torch.stack([low.new_tensor(float(share.rows)), low, high]))
    counts, lows, highs = rows[rows[:, 0] > 0].unbind(1)
    if widest:
        return lows.min(), highs.max()
    return (counts * lows).sum() / counts.sum(), (counts * highs).sum() / counts.sum()


def everyone(values: Tensor) -> Tensor:
    """Give the values ``[rows, …]`` of all rows of the batch, in their order; gradients flow back to whose they are."""
    share = current()
    if share is None:
        return values
    gathered: Tensor = _Gathered.apply(values, share.rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gathered(torch.autograd.Function):
    """The rows of all processes; every process's loss of them adds to the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: int) -> Tensor:
        counts = [count for (count,) in crew.compared([rows])]
        ctx.start, ctx.rows, ctx.shape = sum(counts[: crew.rank()]), rows, values.shape
        padded = values.new_zeros((max(counts), *values.shape[1:]))
        padded[:rows] = values[:rows]
        parts = crew.stacked(padded.flatten()).reshape(-1, *padded.shape)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = crew.total(gradient)
        mine = gradient.new_zeros(ctx.shape)
        mine[: ctx.rows] = total[ctx.start : ctx.start + ctx.rows]
        return mine, None


def held(values: Tensor) -> int:
    """Count the values of all rows of the batch."""
    share = current()
    return values.numel() if share is None else values.numel() // max(1, len(values)) * share.of
