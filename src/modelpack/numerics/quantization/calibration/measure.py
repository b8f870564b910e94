"""What the values of a model's tensors are over some rows, in one pass and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics import masks, rows
from modelpack.numerics.quantization.calibration import blame, hidden
from modelpack.numerics.quantization.calibration.counting import BUDGET, Counter
from modelpack.numerics.quantization.calibration.extremes import Reducer
from modelpack.numerics.quantization.calibration.taps import taps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import ModelProto

    from modelpack.numerics.quantization.calibration.record import Seen
    from modelpack.numerics.rows import Feed
    from modelpack.tensors import TensorSpec


@dataclass(frozen=True)
class Findings:
    """What was seen of each tensor, by name, and over how many rows."""

    tensors: Mapping[str, Seen]
    rows: int


def measure(
    model: ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    inputs: Mapping[str, TensorSpec],
    *,
    mask: str | None = None,
    histograms: bool = True,
    device: str = "cpu",
    budget: int = BUDGET,
) -> Findings:
    """Find the smallest and largest value of each tensor, and count all values in bins if wanted.

    Args:
        model: A prepared graph.
        names: Its float32 tensors to look at.
        feeds: The rows.
        inputs: What the model takes.
        mask: The input that tells padded positions, which then do not count.
        histograms: Whether to count values.
        device: Where the model runs and values are counted.
        budget: Bytes of activations that a run may hand back.

    Raises:
        StageError: When there are no rows, or the mask leaves none of their positions; when the model fails on them,
            or a tensor holds NaN or infinity.
    """
    first, whole = rows.peeked(feeds, inputs)
    padded = hidden.aligned(model, names, mask, inputs, first, device=device) if mask is not None else {}
    looked = taps(model, names, padded)
    meter: Counter | Reducer
    if histograms:
        meter = Counter(model, looked, inputs, mask=mask, device=device, budget=budget)
    else:
        meter = Reducer(model, looked, inputs, mask=mask, device=device)
    del first
    count, real = 0, mask is None
    for feed in whole:
        if mask is not None:
            real |= bool(masks.real(mask, feed).any())
        for piece in rows.pieces(feed, inputs, meter.portion(feed)):
            wrong = meter.look(piece)
            if wrong is not None:
                raise blame.not_finite(model, wrong, piece, device)
        count += rows.count(feed, inputs)
    if not real:
        raise StageError(
            f"the mask '{mask}' is 0 at every position of all rows, so that none counts",
            then="a mask is 1 at real positions; if it tells something else, say `mask: none`",
        )
    return Findings(meter.result(), count)
