"""What shall become smaller, and how much of it may stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from modelpack.numerics import macs
from modelpack.numerics.pruning import counting
from modelpack.numerics.pruning.groups import Counts, Group

TOLERANCE = 0.02
"""How far from the target a result may be that is counted, relative to the target."""


@dataclass(frozen=True)
class Meter:
    """What stays of one model, in one quantity; 1 is all of it.

    Attributes:
        estimate: Units that each group loses → the fraction that should stay; asked thousands of times. What a unit
            costs follows from it.
        measure: A pruned copy of the model → the fraction that really stays; asked a few times, and believed.
    """

    estimate: Callable[[Counts], float]
    measure: Callable[[nn.Module], float]


Opens = Callable[[nn.Module, Mapping[str, Tensor], Sequence[Group], nn.Module], Meter]
"""Makes a meter.

Given a module, the inputs of one forward pass, the groups that may lose units, and the model that fractions are of: the
module itself, or the one that it was before it was pruned the first time.
"""


@dataclass(frozen=True)
class Target:
    """A quantity and the fraction of it that shall stay.

    Attributes:
        name: The setting that asks for it, such as ``macs``.
        words: What is counted, in words, such as "multiply-accumulates".
        keep: Fraction that shall stay, 0 < keep ≤ 1.
        meter: How the quantity is measured.
        tolerance: How far from `keep` the result may be, relative to it.
        trials: How many pruned copies are measured at most.
        whole: The model that `keep` is a fraction of; None for the one that is pruned.
    """

    name: str
    words: str
    keep: float
    meter: Opens
    tolerance: float = TOLERANCE
    trials: int = 60
    whole: nn.Module | None = None

    def opened(self, module: nn.Module, feed: Mapping[str, Tensor], groups: Sequence[Group]) -> Meter:
        """Make the meter for a module, the inputs of one forward pass, and the groups that may lose units."""
        return self.meter(module, feed, groups, module if self.whole is None else self.whole)

    def met(self, fraction: float) -> bool:
        """Tell whether a fraction is near enough."""
        return abs(fraction - self.keep) <= self.tolerance * self.keep


def of_macs(keep: float) -> Target:
    """Keep a fraction of the multiply-accumulates of one forward pass."""

    def meter(module: nn.Module, feed: Mapping[str, Tensor], groups: Sequence[Group], whole: nn.Module) -> Meter:
        estimate = counting.multiply_accumulates(module, feed, groups)
        total = estimate.whole if whole is module else max(1, macs.count(whole, feed))
        return Meter(_share(estimate, total), lambda smaller: macs.count(smaller, feed) / total)

    return Target("macs", "multiply-accumulates", keep, meter)


def of_params(keep: float) -> Target:
    """Keep a fraction of the parameters, shared ones counted once."""
    return _of_tensors("params", "parameters", keep, lambda item: item.numel() if isinstance(item, nn.Parameter) else 0)


def of_size(keep: float) -> Target:
    """Keep a fraction of the bytes of all tensors that are saved: parameters and buffers."""
    return _of_tensors("size", "weights' bytes", keep, lambda item: item.numel() * item.element_size())


def _of_tensors(name: str, words: str, keep: float, weigh: Callable[[Tensor], float]) -> Target:
    def sum_of(module: nn.Module) -> float:
        return sum(weigh(item) for _, item in counting.each_tensor(module))

    def meter(module: nn.Module, _feed: Mapping[str, Tensor], groups: Sequence[Group], whole: nn.Module) -> Meter:
        estimate, total = counting.tensors(module, groups, weigh), sum_of(whole) or 1.0
        return Meter(_share(estimate, total), lambda smaller: sum_of(smaller) / total)

    return Target(name, words, keep, meter)


def _share(estimate: counting.Formula, total: float) -> Callable[[Counts], float]:
    """Turn fractions of a module's cost into fractions of the whole model's."""
    return lambda counts: estimate(counts) * estimate.whole / total


KINDS: Mapping[str, Callable[[float], Target]] = {"macs": of_macs, "params": of_params, "size": of_size}
"""Setting → the target that it asks for."""
