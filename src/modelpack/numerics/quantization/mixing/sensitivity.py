"""How much of the output's error each layer brings, measured end to end with that layer alone quantized.

The errors of layers add up nearly as if they were independent: on EfficientNet-Lite0 they sum to within 0.1 dB of the
error of the whole. Ranked so, the layers worth keeping in float come first; ranked by what is gained when one layer
alone is made float again, they do not, since what its neighbours round hides it. One session of a graph with switches
serves all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import onnxfile, rows, runtime
from modelpack.numerics.quantization.mixing import switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.mixing.switches import Switchboard
    from modelpack.numerics.quantization.qdq import Marks
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

ROWS = 32
"""Rows that sensitivities are measured on, about."""

PORTION = 4
"""Rows that run at once; the values of all layers of so many are in memory."""

LEVEL = "basic"
"""Optimization level of a graph with switches: layouts for faster kernels would be changed at every switch."""


@dataclass(frozen=True)
class Noise:
    """What quantized layers do to a model's first output.

    Attributes:
        board: The model with switches.
        marks: Gives what is rounded when some layers are quantized.
        feeds: Rows to measure on.
        device: Where it runs.
    """

    board: Switchboard
    marks: Callable[[Sequence[str]], Marks]
    feeds: Sequence[Feed]
    device: str = "cpu"

    def of_each(self, sets: Iterable[Sequence[str]]) -> list[float]:
        """Measure sets of layers.

        Returns:
            For every set, the power of the error relative to that of the float output.

        Raises:
            StageError: When onnxruntime cannot run the graph.
        """
        first = [self.board.model.graph.output[0].name]
        with onnxfile.loadable(self.board.model) as place:
            opened = runtime.session(place, self.device, level=LEVEL, entries=runtime.AT_REST)

        def outputs(layers: Sequence[str]) -> Iterator[NDArray[np.float64]]:
            flags = self.board.flags(layers, self.marks(layers))
            for feed in self.feeds:
                (given,) = runtime.execute(opened, {**feed, switches.FLAGS: flags}, first).values()
                yield given.astype(np.float64)

        wanted = list(outputs(()))
        power = sum(float(np.square(part).sum()) for part in wanted) or 1.0
        found = []
        for layers in sets:
            pairs = zip(outputs(layers), wanted, strict=True)
            found.append(sum(float(np.square(got - goal).sum()) for got, goal in pairs) / power)
        return found

    def alone(self, layers: Sequence[str], track: Callable[[Sequence[str]], Iterable[str]] = iter) -> dict[str, float]:
        """Measure each layer with all others in float.

        Args:
            layers: Names of layers.
            track: Passes them through, showing progress.
        """
        return dict(zip(layers, self.of_each([name] for name in track(layers)), strict=True))


def spread(feeds: Iterable[Feed], inputs: Mapping[str, TensorSpec], count: int = ROWS) -> list[Feed]:
    """Pick about `count` rows from all over some feeds, in portions that take little memory.

    Args:
        feeds: Rows; those of a model that always takes the same number of rows stay together.
        inputs: The model's inputs.
        count: How many rows.
    """
    # A few rows of each batch are kept while they are read, so that no more are in memory than may be needed.
    portions = [rows.take(feed, inputs, PORTION) for feed in feeds]
    most = max(1, round(count / max(rows.count(portions[0], inputs), 1))) if portions else 0
    places = np.linspace(0, len(portions) - 1, min(most, len(portions))).round().astype(int)
    return [portions[place] for place in places]
