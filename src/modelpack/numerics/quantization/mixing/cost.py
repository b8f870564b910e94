"""What keeping a layer in float costs in time, from onnxruntime's own clock of every node.

Three graphs run in turns under its profiler: the float one, the quantized one, and one in which every other layer is
float. The first two tell what each layer takes either way, the third what it takes to go from floats to bytes and
back, by the sizes of the values that cross: its nodes that round and those that undo it, and what else it spends beside
its layers. A layer beside one that is kept already thereby costs less than one in the midst of bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, ValueInfoProto, helper

from modelpack.numerics import onnxfile, runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.rows import Feed

ROUNDS = 15
"""How often each graph runs; the fastest time of each node counts."""

_MULTIPLY = ("Conv", "Gemm", "MatMul")
"""Parts of the names of operators that layers become."""

_TAG = "modelpack.layer.{}."
_TAGGED = re.compile(r"modelpack\.layer\.(\d+)\.")


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
    tags = _tags(model, layers)
    graphs = [_tagged(made, tags) for made in (model, write(layers), write(every_other))]
    floats, integers, mixed = _profiled(graphs, feed, device)
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


def _tags(model: ModelProto, layers: Sequence[str]) -> dict[str, str]:
    """Map names of layers, and of what they give, to names that tell the layer's number.

    A fused node is named after one of the nodes it stands for, or after what the last of them gives.
    """
    readers, numbers = onnxfile.consumers(model.graph), {name: place for place, name in enumerate(layers)}
    tags = {}
    for node in model.graph.node:
        if node.name not in numbers:
            continue
        tag, value = _TAG.format(numbers[node.name]), node.output[0]
        tags[node.name] = tag + node.name
        tags[value] = tag + value
        after = readers.get(value, [])
        if len(after) == 1 and len(after[0].output) == 1:
            tags[after[0].output[0]] = tag + after[0].output[0]
    return tags


def _tagged(model: ModelProto, tags: Mapping[str, str]) -> ModelProto:
    twin = onnxfile.copied(model)
    onnxfile.rename(twin.graph, tags)
    for node in twin.graph.node:
        node.name = tags.get(node.name, node.name)
    return twin


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


def _profiled(models: Sequence[ModelProto], feed: Feed, device: str) -> list[_Profile]:
    """Run graphs in turns, and read what their nodes took."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        places = [stack.enter_context(onnxfile.loadable(model)) for model in models]
        opened = [
            runtime.session(place, device, threads=1, profile=Path(folder) / str(number))
            for number, place in enumerate(places)
        ]
        for _ in range(ROUNDS):
            for session in opened:
                runtime.execute(session, feed)
        return [_read(Path(session.end_profiling())) for session in opened]


def _read(path: Path) -> _Profile:
    fastest: dict[tuple[str, str], float] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            key = (str(event["name"]), str(event["args"]["op_name"]))
            fastest[key] = min(fastest.get(key, math.inf), float(event["dur"]))
    layers: dict[int, float] = {}
    others: dict[str, float] = {}
    for (name, operator), microseconds in fastest.items():
        found = _TAGGED.search(name)
        if found is not None and any(part in operator for part in _MULTIPLY):
            layers[int(found[1])] = layers.get(int(found[1]), 0.0) + microseconds
        else:
            others[operator] = others.get(operator, 0.0) + microseconds
    return _Profile(layers, others)
