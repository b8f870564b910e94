"""What a unit of each group costs in time, from onnxruntime's own clock of every layer of one export.

A layer's time is taken to be in proportion to the channels it reads times those it makes. What is done with its values
before the next layer reads them (activations, additions, attention's own products) is in proportion to those it makes.
Kernels are not that even, so that whoever needs the truth measures the pruned model.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.numerics.measure import profile
from modelpack.numerics.pruning import counting
from modelpack.numerics.pruning.surgery import MATRICES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnx import ModelProto, NodeProto
    from torch import nn

    from modelpack.numerics.measure.profile import Kernel
    from modelpack.numerics.pruning.counting import Formula
    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Times:
    """What the parts of a model take, in microseconds.

    Attributes:
        products: By layer with weights: its product with them.
        outputs: By such a layer: what follows it, up to the next one.
        rest: All else.
    """

    products: Mapping[str, float]
    outputs: Mapping[str, float]
    rest: float = 0.0

    @property
    def total(self) -> float:
        """What the whole takes."""
        return sum(self.products.values()) + sum(self.outputs.values()) + self.rest


def measured(model: ModelProto, module: nn.Module, feed: Feed, device: str = "cpu") -> Times:
    """Measure what the layers of an exported module take.

    Args:
        model: Its graph, whose nodes are named ``module/Operator``.
        module: The module.
        feed: What runs through it.
        device: Where it runs.

    Raises:
        StageError: When onnxruntime cannot run it.
    """
    layers = {path for path, layer in module.named_modules() if isinstance(layer, MATRICES)}
    names = [node.name for node in model.graph.node]
    (kernels,) = profile.fastest([profile.tagged(model, profile.tags(model, names))], feed, device)
    return _sorted(model.graph.node, _makers(model.graph.node, layers), kernels)


def _makers(nodes: Sequence[NodeProto], layers: Collection[str]) -> list[str]:
    """Give for every node the layer that it is, or whose values it goes on with; empty where there is none."""
    made: dict[str, str] = {}
    found = []
    for node in nodes:
        path = node.name.rpartition("/")[0]
        before = next((made[name] for name in node.input if made.get(name)), "")
        maker = path if _multiplies(node.op_type) and path in layers else before
        found.append(maker)
        made.update(dict.fromkeys(node.output, maker))
    return found


def _multiplies(operator: str) -> bool:
    return any(part in operator for part in profile.MULTIPLY)


def _sorted(nodes: Sequence[NodeProto], makers: Sequence[str], kernels: Sequence[Kernel]) -> Times:
    """Add kernels up; one that was fused of a product and what follows it counts as the product."""
    products: dict[str, float] = defaultdict(float)
    outputs: dict[str, float] = defaultdict(float)
    rest = 0.0
    for kernel in kernels:
        maker = makers[kernel.place] if kernel.place is not None else ""
        if not maker or kernel.place is None:
            rest += kernel.microseconds
            continue
        node = nodes[kernel.place]
        itself = node.name.rpartition("/")[0] == maker and _multiplies(node.op_type)
        fused = _multiplies(kernel.operator) and not _multiplies(node.op_type)
        (products if itself or fused else outputs)[maker] += kernel.microseconds
    return Times(dict(products), dict(outputs), rest)


def formula(times: Times, module: nn.Module, groups: Sequence[Group]) -> Formula:
    """Write the time as a formula of the units that groups lose."""
    return counting.layers(module, groups, times.products, times.outputs, times.rest)


def of_modules(times: Times, paths: Sequence[str]) -> dict[str, float]:
    """Give the fraction of the time that the layers inside each of some modules take, with what follows them."""
    parts = [*times.products.items(), *times.outputs.items()]
    return {
        path: sum(taken for layer, taken in parts if layer == path or layer.startswith(f"{path}.")) / times.total
        for path in paths
    }


def table(estimate: Formula, groups: Sequence[Group], whole_ms: float) -> list[dict[str, Any]]:
    """List what groups cost.

    Args:
        estimate: The time as a formula.
        groups: The groups.
        whole_ms: What the whole model takes.

    Returns:
        By group: its name, its units, the milliseconds that one of them costs on the way to half of them, and the
        fraction of the time that all of them take part in.
    """
    rows = []
    for number, group in enumerate(groups):

        def saved(units: int, number: int = number) -> float:
            return 1.0 - estimate(tuple(units if other == number else 0 for other in range(len(groups))))

        half = max(1, group.units // 2)
        unit = whole_ms * saved(half) / half
        rows.append({"group": group.name, "units": group.units, "unit_ms": unit, "share": saved(group.units)})
    return rows
