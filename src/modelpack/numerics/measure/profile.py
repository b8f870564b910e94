"""What each node of a graph takes, from onnxruntime's own clock.

Graphs run in turns under its profiler. It fuses nodes and names what comes of them after one of those it stands for, or
after what the last of them gives; so names that are to be found again carry a number.
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

from modelpack.numerics import onnxfile, runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.rows import Feed

ROUNDS = 15
"""How often each graph runs; the fastest time of each node counts."""

MULTIPLY = ("Conv", "Gemm", "MatMul")
"""Parts of the names of operators that layers become."""

_TAG = "modelpack.layer.{}."
_TAGGED = re.compile(r"modelpack\.layer\.(\d+)\.")


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime ran.

    Attributes:
        place: Number of the node that it stands for; None for one without a tag.
        operator: Its operator, such as ``FusedConv``.
        microseconds: Its fastest time.
    """

    place: int | None
    operator: str
    microseconds: float


def tags(model: ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Map names of nodes, and of what they give, to names that tell the node's number.

    What the one reader of a node gives is tagged too, unless it is among the nodes itself.

    Args:
        model: The graph.
        names: Names of nodes; the number is the place here.
    """
    readers, numbers = onnxfile.consumers(model.graph), {name: place for place, name in enumerate(names)}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in numbers:
            continue
        tag = _TAG.format(numbers[node.name])
        found[node.name] = tag + node.name
        value = next(filter(None, node.output))  # the first may be left out, as recurrent layers do
        found[value] = tag + value
        after = readers.get(value, [])
        if len(after) == 1 and len(after[0].output) == 1:
            found[after[0].output[0]] = tag + after[0].output[0]
    return found


def tagged(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """Give a copy of a graph in which nodes and values have other names."""
    twin = onnxfile.copied(model)
    onnxfile.rename(twin.graph, names)
    for node in twin.graph.node:
        node.name = names.get(node.name, node.name)
    return twin


def fastest(models: Sequence[ModelProto], feed: Feed, device: str = "cpu") -> list[list[Kernel]]:
    """Run graphs in turns, on one thread, and read what their nodes took.

    Raises:
        StageError: When onnxruntime cannot run one of them.
    """
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


def _read(path: Path) -> list[Kernel]:
    times: dict[tuple[str, str], float] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            key = (str(event["name"]), str(event["args"]["op_name"]))
            times[key] = min(times.get(key, math.inf), float(event["dur"]))
    return [Kernel(_place(name), operator, microseconds) for (name, operator), microseconds in times.items()]


def _place(name: str) -> int | None:
    found = _TAGGED.search(name)
    return int(found[1]) if found is not None else None
