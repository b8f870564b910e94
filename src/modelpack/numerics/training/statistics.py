"""Statistics of batch norms, measured anew."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpack.errors import StageError
from modelpack.numerics import models
from modelpack.numerics.calling import call
from modelpack.numerics.training import crew
from modelpack.numerics.training.batches import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from modelpack.numerics.training.batches import Rows
    from modelpack.numerics.training.lesson import Watch

Read = Callable[[], "Iterable[Mapping[str, Tensor]]"]
"""Reads batches of a model's inputs, on its device, from the start."""

_JUDGES = 512
"""Rows that say which statistics are better."""


@dataclass(frozen=True)
class Settled:
    """By which statistics a student's batch norms normalise.

    Attributes:
        norms: How many batch norms there are.
        still: Whether they keep those they had, which are not those of the rows, and should while the student learns.
        errors: The squared error of the outputs, relative to their variance, by the statistics that the batch norms
            had and by new ones; None where it was not asked.
    """

    norms: int
    still: bool
    errors: tuple[float, float] | None = None

    @property
    def word(self) -> str:
        """What became of the statistics."""
        return "kept" if self.still else "measured anew" if self.norms else "none"

    @property
    def told(self) -> str:
        """What was done, in words."""
        if not self.norms:
            return "the model has no batch norms"
        if not self.still:
            return f"measured the statistics of {self.norms} batch norms anew"
        return f"kept the statistics of {self.norms} batch norms"

    def to_json(self) -> dict[str, Any]:
        """Give what a record holds of it."""
        names = ("error_by_old", "error_by_new")
        known = {name: value for name, value in zip(names, self.errors or (), strict=False) if math.isfinite(value)}
        return {"batch_norms": self.norms, "statistics": self.word, **known}


def reader(data: Rows, device: torch.device, watch: Watch = lambda items, _total, _label: items) -> Read:
    """Give what reads the inputs of all rows, on a device."""
    return lambda: (split(batch, device)[0] for batch in watch(data.picked(), 0, "batch norms"))


def settle(student: nn.Module, teacher: nn.Module, read: Read, *, anew: bool | None = None) -> Settled:
    """Measure the statistics of a student's batch norms anew, or let it keep those it has.

    Rows that are few, or unlike those that the statistics are of, do more harm than good: even the teacher would give
    something else by them.

    Args:
        student: In evaluation mode.
        teacher: What the student should give, likewise; its outputs have the same names and shapes.
        read: Reads the rows, once for each time that it is called.
        anew: Whether to measure; None for what brings the outputs closer to the teacher's.

    Raises:
        StageError: When the student cannot run on the rows.
    """
    norms = _norms(student)
    if not norms or anew is False:
        return Settled(len(norms), still=bool(norms))
    before = [(value, value.clone()) for layer in norms for value in layer.buffers(recurse=False)]
    if anew:
        reestimate(student, read())
        return Settled(len(norms), still=False)
    had = _distance(student, teacher, read())
    reestimate(student, read())
    # What rounding decides must be decided alike in all processes of a crew.
    had, got = crew.told([had, _distance(student, teacher, read())])
    better = got <= had
    for value, old in before if not better else ():
        value.copy_(old)
    return Settled(len(norms), still=not better, errors=(had, got))


@torch.no_grad()
def _distance(student: nn.Module, teacher: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Give the squared error of the outputs on the first rows, relative to their variance and summed over outputs."""
    gaps: dict[str, Tensor] = {}
    spreads: dict[str, Tensor] = {}
    seen = 0
    for inputs in batches:
        if seen >= _JUDGES:
            break
        seen += len(next(iter(inputs.values())))
        with models.blamed("the model fails on the rows"):
            found, wanted = call(student, inputs), call(teacher, inputs)
        for name, value in wanted.items():
            if value.is_floating_point():
                wide = value.float()
                gap, spread = _squares(found[name].float() - wide), _squares(wide - wide.mean())
                gaps[name] = gaps[name] + gap if name in gaps else gap
                spreads[name] = spreads[name] + spread if name in spreads else spread
    return sum(float(gap / spreads[name].clamp_min(1e-30)) for name, gap in gaps.items())


def _squares(values: Tensor) -> Tensor:
    return values.square().sum(dtype=torch.float64)


def count(module: nn.Module) -> int:
    """Give the number of batch norms that keep statistics."""
    return len(_norms(module))


def still(module: nn.Module) -> None:
    """Let the batch norms of a module that trains normalise by the statistics that they have, and keep them."""
    for layer in _norms(module):
        layer.eval()


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Measure the statistics of all batch norms anew, as plain averages over the batches, in place.

    Returns:
        How many batch norms there were; 0 leaves the module as it was.

    Raises:
        StageError: When the module cannot run on a batch.
    """
    norms = _norms(module)
    if not norms:
        return 0
    before = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative average
        layer.train()
    for batch in _without_lone_row(batches):
        with (
            explained(len(next(iter(batch.values())))),
            models.blamed("the statistics of batch norms cannot be measured"),
        ):
            call(module, batch)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    module.eval()
    return len(norms)


@contextlib.contextmanager
def explained(rows: int) -> Iterator[None]:
    """Say what to do where batch norms of vectors were given a single row, of which they learn nothing.

    Args:
        rows: Of the batch that is learnt from while this is open.
    """
    try:
        yield
    except StageError as error:
        if rows > 1 or not isinstance(error.__cause__, ValueError):
            raise
        raise StageError(
            error.what,
            then="the batches are single rows, of which some batch norms learn nothing: let the data give more rows at "
            "once, or keep the statistics by `batch_norm: false` where the step has it",
        ) from error


def own(module: nn.Module) -> None:
    """Give the batch norms of a module whose tensors are shared statistics of their own, in place."""
    for layer in _norms(module):
        for name, value in layer.named_buffers(recurse=False):
            setattr(layer, name, value.clone())


def _norms(module: nn.Module) -> list[Any]:
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats  # noqa: SLF001
    ]


def _without_lone_row(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    """Leave out a last batch of a single row, whose values do not vary; not where all batches are like that."""
    largest = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        largest = max(largest, size)
        if size > 1 or largest == 1:
            yield batch
