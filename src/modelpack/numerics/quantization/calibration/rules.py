"""From what was seen of a tensor to the range that its grid spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.quantization.calibration import entropy, mse, percentile
from modelpack.numerics.quantization.extent import Extent

if TYPE_CHECKING:
    from modelpack.numerics.quantization.calibration.histogram import Histogram


def extent(histogram: Histogram, rule: str, share: float = 100.0) -> Extent:
    """Choose a range.

    Args:
        histogram: The values.
        rule: ``percentile``, ``entropy`` or ``mse``.
        share: For ``percentile``, the share of the values inside the range, in per cent.

    Returns:
        A range inside the values seen; all of them where there are none to weigh.
    """
    if not histogram.total:
        return Extent(histogram.low, histogram.high)
    match rule:
        case "percentile":
            return Extent(*percentile.between(histogram, share))
        case "entropy":
            return Extent(*entropy.nearest(histogram))
        case "mse":
            return Extent(*mse.least(histogram))
    raise ValueError(f"no rule is named '{rule}'")
