"""What a calibration found, as files: ``calibration.json``, and ``arrays.npz`` with equal bytes for equal arrays."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack import canonical
from modelpack.errors import StageError
from modelpack.numerics.quantization.calibration import rules
from modelpack.numerics.quantization.calibration.histogram import SIDE, Histogram, exponent_for
from modelpack.numerics.quantization.extent import Extent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FACTS = "calibration.json"
ARRAYS = "arrays.npz"
SCHEMA = 1
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Seen:
    """What the values of a tensor were.

    Attributes:
        low: The smallest.
        high: The largest.
        histogram: All of them, where they were counted.
        left_out: How many did not count, because they only hide positions.
    """

    low: float
    high: float
    histogram: Histogram | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Calibration:
    """What was seen of a model's activations.

    Attributes:
        model: Identity of the model that was measured.
        rows: How many rows it was measured on.
        tensors: What was seen of each tensor, by name.
        mask: The input that told padded positions apart; empty when none did.
        equalize: Whether channels were equalized first.
        smooth: Share of the outliers that was moved into weights first; None when none was.
        factors: What moved them: per layer normalization or product, a factor per channel.
    """

    model: str
    rows: int
    tensors: Mapping[str, Seen]
    mask: str = ""
    equalize: bool = False
    smooth: float | None = None
    factors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """Whether there are histograms."""
        return all(seen.histogram is not None for seen in self.tensors.values())

    def extents(self, names: Iterable[str], rule: str, percentile: float = 100.0) -> dict[str, Extent]:
        """Give the ranges of tensors.

        Args:
            names: The tensors.
            rule: ``minmax``, or one of `rules.extent`.
            percentile: Share of the values that a range holds, in per cent, for ``percentile``.

        Raises:
            StageError: When a tensor was not measured, or the rule needs histograms that are not there.
        """
        wanted = list(names)
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise StageError(
                f"the calibration has no ranges of {len(missing)} tensors, such as '{missing[0]}'",
                then="calibrate with the same `operators:`, or leave `calibration:` out",
            )
        if rule == "minmax":
            return {name: Extent(self.tensors[name].low, self.tensors[name].high) for name in wanted}
        found = {}
        for name in wanted:
            histogram = self.tensors[name].histogram
            if histogram is None:
                raise StageError(
                    f"`ranges: {rule}` needs histograms, and the calibration has none",
                    then="say `histograms: true` in the calibrate step",
                )
            found[name] = rules.extent(histogram, rule, percentile)
        return found


def write(found: Calibration, out: Path) -> None:
    """Write both files into a directory."""
    arrays: dict[str, NDArray[np.generic]] = {f"factors/{key}": value for key, value in sorted(found.factors.items())}
    tensors: list[dict[str, Any]] = []
    for number, (name, seen) in enumerate(sorted(found.tensors.items())):
        entry: dict[str, Any] = {"name": name, "min": seen.low, "max": seen.high, "left_out": seen.left_out}
        if seen.histogram is not None:
            used = np.flatnonzero(seen.histogram.counts)
            first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
            arrays[f"counts/{number}"] = seen.histogram.counts[first:last]
            entry |= {"count": seen.histogram.total, "exponent": seen.histogram.exponent, "first": first - SIDE}
        tensors.append(entry)
    facts = {
        "schema": SCHEMA,
        "model": found.model,
        "rows": found.rows,
        "mask": found.mask,
        "equalize": found.equalize,
        "smooth": found.smooth,
        "tensors": tensors,
    }
    (out / FACTS).write_bytes(canonical.encode(facts) + b"\n")
    (out / ARRAYS).write_bytes(packed(arrays))


def packed(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Give an ``.npz`` file whose bytes depend on the arrays alone: no times, no compression that may change."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(values), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), part.getvalue())
    return whole.getvalue()


def read(facts: Path, arrays: Path) -> Calibration:
    """Read both files.

    Raises:
        StageError: When one is damaged or of another version.
    """
    try:
        told = _told(facts)
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as held:
            tensors = {item["name"]: _seen(item, held, number) for number, item in enumerate(told["tensors"])}
            found = {key.removeprefix("factors/"): held[key] for key in held.files if key.startswith("factors/")}
        return Calibration(
            str(told["model"]),
            int(told["rows"]),
            tensors,
            str(told["mask"]),
            bool(told["equalize"]),
            told["smooth"],
            {name: _factors(name, values) for name, values in found.items()},
        )
    except Exception as error:  # what zipfile and numpy raise on damaged files is not documented
        raise StageError(
            f"the calibration cannot be read: {error}", where=str(facts.parent), then="calibrate again"
        ) from error


def _told(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_bytes())
    if told["schema"] != SCHEMA:
        raise ValueError(f"its schema is {told['schema']!r}, not {SCHEMA}")
    return told


def _seen(item: Mapping[str, Any], held: Mapping[str, NDArray[np.int64]], number: int) -> Seen:
    low, high, left_out = float(item["min"]), float(item["max"]), int(item["left_out"])
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"no values of '{item['name']}' lie between {low} and {high}")
    if "exponent" not in item:
        return Seen(low, high, None, left_out)
    part, first = held[f"counts/{number}"], int(item["first"]) + SIDE
    counts = np.zeros(2 * SIDE + 1, np.int64)
    if part.dtype != np.int64 or part.ndim != 1 or first < 0 or first + part.size > counts.size or (part < 0).any():
        raise ValueError(f"the counts of '{item['name']}' are no histogram")
    counts[first : first + part.size] = part
    histogram = Histogram(int(item["exponent"]), counts, low, high)
    if histogram.exponent != exponent_for(max(-low, high)):
        raise ValueError(f"the counts of '{item['name']}' are of other values than {low} to {high}")
    return Seen(low, high, histogram, left_out)


def _factors(name: str, values: NDArray[np.generic]) -> NDArray[np.float32]:
    numbers = np.asarray(values, dtype=np.float32)
    if values.dtype != np.float32 or values.ndim != 1 or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"the factors of '{name}' are not one positive number per channel")
    return numbers
