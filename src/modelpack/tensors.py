"""The names, shapes, types and ranges of a model's inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

DType = Literal[
    "float32",
    "float16",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
DimensionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dimension = Annotated[int, Field(gt=0)] | DimensionName


class TensorSpec(BaseModel):
    """One tensor: its shape, element type and the values it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: tuple[Dimension, ...] = Field(description="Sizes, outermost first; a name makes that dimension dynamic.")
    dtype: DType = Field("float32", description="Element type.")
    range: tuple[float, float] | None = Field(
        None, description="Smallest and largest value, used by random data and shown to clients."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"the range {list(self.range)} is empty: its first value exceeds its second")
        return self

    @property
    def dynamic(self) -> dict[int, str]:
        """Axis number to name, for every named dimension."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def sizes(self, named: Mapping[str, int]) -> tuple[int, ...]:
        """Give concrete sizes, taking each named dimension from `named`, or 1 where it has none."""
        return tuple(named.get(size, 1) if isinstance(size, str) else size for size in self.shape)
