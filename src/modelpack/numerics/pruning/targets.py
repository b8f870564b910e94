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


Opens = Callable[[nn.Module, Mapping[str, Tensor], Sequence[Group]], Meter]
"""Makes a meter for a module, the inputs of one forward pass, and the groups that may lose units."""


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
    """

    name: str
    words: str
    keep: float
    meter: Opens
    tolerance: float = TOLERANCE
    trials: int = 60

    def met(self, fraction: float) -> bool:
        """Tell whether a fraction is near enough."""
        return abs(fraction - self.keep) <= self.tolerance * self.keep


def of_macs(keep: float) -> Target:
    """Keep a fraction of the multiply-accumulates of one forward pass."""

    def meter(module: nn.Module, feed: Mapping[str, Tensor], groups: Sequence[Group]) -> Meter:
        estimate = counting.multiply_accumulates(module, feed, groups)
        return Meter(estimate, lambda smaller: macs.count(smaller, feed) / estimate.whole)

    return Target("macs", "multiply-accumulates", keep, meter)


def of_params(keep: float) -> Target:
    """Keep a fraction of the parameters, shared ones counted once."""
    return _of_tensors("params", "parameters", keep, lambda item: item.numel() if isinstance(item, nn.Parameter) else 0)


def of_size(keep: float) -> Target:
    """Keep a fraction of the bytes of all tensors that are saved: parameters and buffers."""
    return _of_tensors("size", "weights' bytes", keep, lambda item: item.numel() * item.element_size())


def _of_tensors(name: str, words: str, keep: float, weigh: Callable[[Tensor], float]) -> Target:
    def total(module: nn.Module) -> float:
        return sum(weigh(item) for _, item in counting.each_tensor(module))

    def meter(module: nn.Module, _feed: Mapping[str, Tensor], groups: Sequence[Group]) -> Meter:
        estimate = counting.tensors(module, groups, weigh)
        return Meter(estimate, lambda smaller: total(smaller) / estimate.whole)

    return Target(name, words, keep, meter)


KINDS: Mapping[str, Callable[[float], Target]] = {"macs": of_macs, "params": of_params, "size": of_size}
"""Setting → the target that it asks for."""
