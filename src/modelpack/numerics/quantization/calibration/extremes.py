"""The smallest and largest values that a session finds without handing activations back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import onnxfile, rows, runtime
from modelpack.numerics.quantization.calibration.record import Seen
from modelpack.numerics.quantization.calibration.reductions import reductions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.calibration.taps import Tap
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec

PIECE = 2**20
"""Bytes of inputs that one run takes: images go one by one, so that what a layer gives is still in the cache."""


@dataclass
class _Extreme:
    low: float = math.inf
    high: float = -math.inf
    left_out: int = 0


class Reducer:
    """Finds the extremes of some tensors of a model."""

    def __init__(
        self,
        model: ModelProto,
        taps: Sequence[Tap],
        inputs: Mapping[str, TensorSpec],
        *,
        mask: str | None = None,
        device: str = "cpu",
    ) -> None:
        """Open the model so that it gives what each tensor reduces to.

        Args:
            model: A prepared graph.
            taps: The tensors.
            inputs: What the model takes.
            mask: The input that tells padded positions apart, if any.
            device: Where the model runs.
        """
        self.inputs = inputs
        made = reductions(model, taps, mask)
        self.lows, self.highs, self.sums, self.left_out = made.lows, made.highs, made.sums, made.left_out
        with onnxfile.loadable(made.model) as place:
            self.session = runtime.session(place, device, entries=runtime.AT_REST, planned=False)
        self.seen = {tap.name: _Extreme(low=0.0 if tap.positive else math.inf) for tap in taps}

    def portion(self, feed: Feed) -> int:
        """Say how many rows of a feed to look at in one go."""
        size = sum(values.nbytes for values in feed.values()) // max(rows.count(feed, self.inputs), 1)
        return max(1, PIECE // max(size, 1))

    def look(self, piece: Feed) -> str | None:
        """Find the extremes on some rows.

        Returns:
            A tensor that is not finite on them.

        Raises:
            StageError: When the model fails on the rows.
        """
        got = runtime.execute(self.session, piece)
        for output, name in self.highs.items():
            self.seen[name].high = max(self.seen[name].high, float(got[output].max(initial=-np.inf)))
        for output, name in self.lows.items():
            self.seen[name].low = min(self.seen[name].low, float(got[output].min(initial=np.inf)))
        for output, name in self.left_out.items():
            self.seen[name].left_out += int(got[output])
        wrong = [name for name, item in self.seen.items() if item.high == math.inf or item.low == -math.inf]
        wrong += [name for output, name in self.sums.items() if np.isnan(got[output]).any()]
        return wrong[0] if wrong else None

    def result(self) -> dict[str, Seen]:
        """Give what was seen of each tensor."""
        return {name: Seen(item.low, item.high, None, item.left_out) for name, item in self.seen.items()}
