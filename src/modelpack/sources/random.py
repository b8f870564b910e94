"""Invented rows, for smoke runs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelpack.data import DataSource, SourceConfig, source
from modelpack.errors import StageError, UsageError, did_you_mean
from modelpack.sources.rows import Rows
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from modelpack.data import Batch


class RandomConfig(SourceConfig):
    """How many rows to invent, and the sizes of dimensions that have only names."""

    rows: int = Field(64, gt=0, description="How many rows to invent.")
    dimensions: dict[str, int] = Field(
        default_factory=dict, description="Size of each named dimension of the model's inputs, other than the first."
    )


@source(version=1, synthetic=True)
def random(config: RandomConfig, inputs: Mapping[str, TensorSpec]) -> DataSource:
    """Random values within each input's declared range, without labels: for smoke runs only."""
    if not inputs:
        raise UsageError("the `random` source needs the model's `inputs`", then="declare them in `model:`")
    named = set()
    for name, spec in inputs.items():
        if not spec.shape:
            raise UsageError(f"the input '{name}' has no first dimension to hold rows")
        named |= {size for size in spec.shape[1:] if isinstance(size, str)}
    for size in sorted(named - set(config.dimensions)):
        raise UsageError(f"the dimension '{size}' has no size", then=f"add `dimensions: {{{size}: 16}}`")
    for size in config.dimensions:
        if size not in named:
            raise UsageError(f"no input has a dimension '{size}' after its first", then=did_you_mean(size, named))
    shapes = {name: spec.model_dump(mode="json") for name, spec in inputs.items()}
    return Rows(random, config, "random", lambda: _Invented(config, inputs), lambda: {"inputs": shapes})


@dataclass(frozen=True)
class _Invented:
    """Rows that depend on the seed and their own number only."""

    config: RandomConfig
    inputs: Mapping[str, TensorSpec]

    def __len__(self) -> int:
        return self.config.rows

    def read(self, rows: NDArray[np.intp]) -> Batch:
        """Invent these rows."""
        import numpy as np

        made = [self._row(int(row)) for row in rows]
        return {name: np.stack([row[name] for row in made]) for name in self.inputs}

    def _row(self, row: int) -> dict[str, NDArray[Any]]:
        import numpy as np

        rng = np.random.default_rng([self.config.seed or 0, row])
        return {name: self._value(rng, name, spec) for name, spec in self.inputs.items()}

    def _value(self, rng: np.random.Generator, name: str, spec: TensorSpec) -> NDArray[Any]:
        import numpy as np

        low, high = spec.range or (0.0, 1.0)
        shape = TensorSpec(shape=spec.shape[1:]).sizes(self.config.dimensions)
        try:
            if np.dtype(spec.dtype).kind == "f":
                with np.errstate(over="raise"):
                    return np.asarray(rng.uniform(low, high, shape)).astype(spec.dtype)
            integer = "int64" if spec.dtype == "bool" else spec.dtype
            whole = rng.integers(int(np.ceil(low)), int(np.floor(high)), shape, dtype=integer, endpoint=True)
            return np.asarray(whole).astype(spec.dtype)
        except (ValueError, OverflowError, FloatingPointError) as error:
            raise StageError(
                f"no {spec.dtype} lies in the range {[low, high]}: {error}", where=f"input '{name}'"
            ) from error
