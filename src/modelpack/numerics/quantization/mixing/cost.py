"""What keeping a layer in float costs in time, from onnxruntime's own clock of every node.

Three graphs run in turns under its profiler: the float one, the quantized one, and one in which every other layer is
float. The first two tell what each layer takes either way, the third what it takes to go from floats to bytes and
back, by the sizes of the values that cross: its nodes that round and those that undo it, and what else it spends beside
its layers. A layer beside one that is kept already thereby costs less than one in the midst of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import ModelProto, ValueInfoProto, helper

from modelpack.numerics import onnxfile, runtime
from modelpack.numerics.measure import profile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from modelpack.numerics.measure.profile import Kernel
    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Costs:
    """Times of one run, in microseconds.

    Attributes:
        layers: What each layer takes in float beyond what it takes on bytes; negative where float is faster.
        entering: What it takes to bring one element from floats to bytes.
        leaving: What it takes to bring one back.
        sizes: Elements of the values that may cross.
        total: What the quantized graph takes.
    """

    layers: Mapping[str, float]
    entering: float
    leaving: float
    sizes: Mapping[str, int]
    total: float

    def of(self, kept: Collection[str], crossing: Crossings) -> float:
        """Estimate what the graph takes longer when some layers are kept in float.

        Args:
            kept: Names of layers.
            crossing: The values that go from floats to bytes or back.
        """
        enter, leave = (sum(self.sizes[name] for name in names) for names in (crossing.enter, crossing.leave))
        return sum(self.layers[name] for name in kept) + self.entering * enter + self.leaving * leave


@dataclass(frozen=True)
class Crossings:
    """Names of the values that go from floats to bytes, and of those that go back."""

    enter: tuple[str, ...]
    leave: tuple[str, ...]


def crossings(model: ModelProto, marked: Marks) -> Crossings:
    """Name the values that go from floats to bytes or back.

    Args:
        model: The float graph.
        marked: What is rounded in it.
    """
    given = {item.name for item in model.graph.output}
    rounded = {*marked.measured, *marked.carried}
    readers = onnxfile.consumers(model.graph)
    return Crossings(
        tuple(name for name in sorted(rounded) if name not in marked.made),
        tuple(
            name
            for name in sorted(marked.made & rounded)
            if name in given or any(node.name not in marked.readers for node in readers.get(name, ()))
        ),
    )


def measure(
    model: ModelProto,
    layers: Sequence[str],
    marks: Callable[[Sequence[str]], Marks],
    write: Callable[[Sequence[str]], ModelProto],
    feed: Feed,
    *,
    device: str = "cpu",
) -> Costs:
    """Measure what each layer costs.

    Args:
        model: The float graph.
        layers: Names of the layers that can be quantized.
        marks: Gives what is rounded when some of them are.
        write: Makes the graph in which they are.
        feed: One row.
        device: Where the graphs run.

    Raises:
        StageError: When onnxruntime cannot run one of them.
    """
    whole, every_other = marks(layers), layers[::2]
    sizes = _sizes(model, sorted({*whole.measured, *whole.carried}), feed, device)
    tags = profile.tags(model, layers)
    graphs = [profile.tagged(made, tags) for made in (model, write(layers), write(every_other))]
    floats, integers, mixed = map(_sorted, profile.fastest(graphs, feed, device))
    both = [place for place in range(len(layers)) if place in floats.layers and place in integers.layers]
    saved = {layers[place]: floats.layers[place] - integers.layers[place] for place in both}
    found = crossings(model, marks(every_other))
    enter, leave = (max(1, sum(sizes[name] for name in names)) for names in (found.enter, found.leave))
    rounding, undoing = (mixed.others.get(operator, 0.0) for operator in ("QuantizeLinear", "DequantizeLinear"))
    more = max(0.0, mixed.rest - rounding - undoing - floats.rest) / (enter + leave)
    return Costs(
        dict.fromkeys(layers, 0.0) | saved, rounding / enter + more, undoing / leave + more, sizes, integers.total
    )


@dataclass(frozen=True)
class _Profile:
    """Fastest times of a graph's nodes, in microseconds: those of layers by number, of all others by operator."""

    layers: Mapping[int, float]
    others: Mapping[str, float]

    @property
    def rest(self) -> float:
        return sum(self.others.values())

    @property
    def total(self) -> float:
        return sum(self.layers.values()) + self.rest


def _sizes(model: ModelProto, names: Sequence[str], feed: Feed, device: str) -> dict[str, int]:
    """Count the elements of values."""
    twin = onnxfile.copied(model)
    del twin.graph.output[:]
    for number, name in enumerate(names):
        twin.graph.node.append(helper.make_node("Size", [name], [f"modelpack.size.{number}"]))
        twin.graph.output.append(ValueInfoProto(name=f"modelpack.size.{number}"))
    with onnxfile.loadable(twin) as place:
        counts = runtime.execute(runtime.session(place, device), feed).values()
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _sorted(kernels: Iterable[Kernel]) -> _Profile:
    """Tell the kernels of layers from all others."""
    layers: dict[int, float] = {}
    others: dict[str, float] = {}
    for kernel in kernels:
        if kernel.place is not None and any(part in kernel.operator for part in profile.MULTIPLY):
            layers[kernel.place] = layers.get(kernel.place, 0.0) + kernel.microseconds
        else:
            others[kernel.operator] = others.get(kernel.operator, 0.0) + kernel.microseconds
    return _Profile(layers, others)
