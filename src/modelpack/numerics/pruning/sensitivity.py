"""What each group of layers bears: how good the model is when that group alone has lost a share of its units.

The channels that go are those that pruning would take first. They are silenced, not cut out: the layers that read them
ignore them, which gives the same outputs without building another model. Only where a group normalisation spans the
channels is the smaller model built, because its statistics would differ.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from modelpack.errors import StageError
from modelpack.numerics import models, rows
from modelpack.numerics.calling import call
from modelpack.numerics.measure.comparison import decibels
from modelpack.numerics.pruning import plan, surgery
from modelpack.numerics.pruning.plan import Removal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.pruning.choice import Ranking
    from modelpack.numerics.pruning.groups import Group
    from modelpack.tensors import TensorSpec

RATIOS = (0.1, 0.25, 0.5, 0.75)
"""Shares of a group's units that go."""

_CLOSE = 40.0
"""Decibels beyond which being closer is worth nothing."""

Sample = tuple[dict[str, Tensor], Tensor | None]
"""Inputs, and the truth where there is one."""


@dataclass(frozen=True)
class Bearing:
    """What one group bears: its name, how many units it has, and the measure for each of the ratios."""

    group: str
    units: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What all groups bear.

    Attributes:
        measure: ``accuracy`` on labels, or ``sqnr_db`` of the first output against the unpruned model's.
        rows: How many rows it was measured on.
        whole: The unpruned model's accuracy; None for ``sqnr_db``.
        ratios: Shares of a group's units that went.
        groups: One by group, in the model's order.
    """

    measure: Literal["accuracy", "sqnr_db"]
    rows: int
    whole: float | None
    ratios: tuple[float, ...]
    groups: tuple[Bearing, ...]

    def worst(self, count: int) -> list[Bearing]:
        """Give the groups that bear least."""
        most = 1.0 if self.measure == "accuracy" else _CLOSE
        return sorted(self.groups, key=lambda item: sum(min(value, most) for value in item.values))[:count]

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return {**asdict(self), "ratios": list(self.ratios), "groups": [asdict(item) for item in self.groups]}


def gather(
    read: Callable[[], Iterable[Mapping[str, NDArray[Any]]]],
    inputs: Mapping[str, TensorSpec],
    limit: int,
    target: str,
    device: str | torch.device,
) -> list[Sample]:
    """Read the rows to measure on, with the truth where the data have it.

    Args:
        read: Reads all batches once more, from the start.
        inputs: The model's inputs.
        limit: How many rows, at most.
        target: Column of the truth.
        device: Where the model is.

    Raises:
        StageError: When an input is missing or unfit, or there are no rows.
    """
    if target not in next(iter(read()), {}):
        return [(models.tensors(feed, device), None) for feed in rows.feeds(read(), inputs, limit)]
    return [
        (models.tensors(feed, device), torch.as_tensor(truth, device=device))
        for feed, truth in rows.labelled(read(), inputs, limit, target)
    ]


def measure(
    module: nn.Module,
    ranking: Ranking,
    samples: Sequence[Sample],
    *,
    ratios: Sequence[float] = RATIOS,
    watch: Callable[[Sequence[Group]], Iterable[Group]] = iter,
) -> Sensitivity:
    """Measure every group alone.

    Args:
        module: In evaluation mode; left as it is.
        ranking: The groups, and the order in which their units go.
        samples: On the module's device.
        ratios: Shares of a group's units to take, each in (0, 1).
        watch: Passes the groups through, showing progress.

    Raises:
        StageError: When the outputs are no numbers.
    """
    judge = _Judge(module, samples)
    copy = surgery.twin(module)
    found = [
        Bearing(group.name, group.units, tuple(_bears(copy, group, units, ratios, judge)))
        for group, units in zip(watch(ranking.groups), ranking.units, strict=True)
    ]
    return Sensitivity(judge.measure, judge.rows, judge.whole, tuple(ratios), tuple(found))


def _bears(
    copy: nn.Module, group: Group, units: Sequence[tuple[int, ...]], ratios: Sequence[float], judge: _Judge
) -> Iterator[float]:
    for ratio in ratios:
        count = min(max(1, round(ratio * len(units))), len(units) - 1)
        roots = tuple(root for unit in units[:count] for root in unit)
        with _without(copy, group, roots) as smaller:
            yield judge(smaller)


@contextlib.contextmanager
def _without(copy: nn.Module, group: Group, roots: tuple[int, ...]) -> Iterator[nn.Module]:
    """Give a model that does without some channels; `copy` is the same again afterwards."""
    modules = dict(copy.named_modules())
    if any(isinstance(modules.get(member.path), nn.GroupNorm) for member in group.members):
        yield plan.apply(copy, [Removal(group, roots)])
        return
    readers = {member.path for member in group.members if member.side == "in"}
    weights = {path: modules[path].get_parameter("weight") for path in readers}
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    surgery.silence(copy, group.members, roots)
    try:
        yield copy
    finally:
        with torch.no_grad():
            for path, weight in weights.items():
                weight.copy_(before[path])


class _Judge:
    """Says how good a model is: by labels where the rows have classes, else by how close it is to the unpruned one."""

    def __init__(self, module: nn.Module, samples: Sequence[Sample]) -> None:
        self._inputs = [inputs for inputs, _ in samples]
        self._wanted = [_first(module, inputs) for inputs in self._inputs]
        self._truth = [truth for _, truth in samples if truth is not None]
        self.rows = sum(len(output) for output in self._wanted)
        self.measure: Literal["accuracy", "sqnr_db"] = "accuracy" if self._has_classes() else "sqnr_db"
        self.whole = self._accuracy(self._wanted) if self.measure == "accuracy" else None

    def __call__(self, module: nn.Module) -> float:
        outputs = [_first(module, inputs) for inputs in self._inputs]
        return self._accuracy(outputs) if self.measure == "accuracy" else self._closeness(outputs)

    def _has_classes(self) -> bool:
        pairs = zip(self._wanted, self._truth, strict=False)
        return len(self._truth) == len(self._wanted) and all(
            output.ndim == 2 and truth.ndim == 1 and not truth.is_floating_point() for output, truth in pairs
        )

    def _accuracy(self, outputs: Sequence[Tensor]) -> float:
        pairs = zip(outputs, self._truth, strict=True)
        return sum(int((output.argmax(1) == truth).sum()) for output, truth in pairs) / self.rows

    def _closeness(self, outputs: Sequence[Tensor]) -> float:
        signal = sum(float(wanted.double().square().sum()) for wanted in self._wanted)
        pairs = zip(outputs, self._wanted, strict=True)
        noise = sum(float((output.double() - wanted.double()).square().sum()) for output, wanted in pairs)
        if not math.isfinite(signal + noise):
            raise StageError("the outputs hold NaN or infinity: sensitivity cannot be measured")
        return decibels(signal, noise)


def _first(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return next(iter(call(module, inputs).values()))
