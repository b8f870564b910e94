"""What the model takes and gives: names, shapes, element types and ranges, read from `signature.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .faults import StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Element types that every route can carry, and what onnxruntime calls them.
DTYPES = {
    "float32": "tensor(float)", "float64": "tensor(double)", "float16": "tensor(float16)", "bool": "tensor(bool)",
    **{f"{sign}int{bits}": f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
TEXTS = ("bytes", "string")
"""Element types that only an interface has: what clients send is prepared, and no session sees it."""


@dataclass(frozen=True)
class Tensor:
    """One input or output; a dimension with a name takes any size, the same wherever that name stands."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    range: tuple[float, float] | None = None

    @property
    def textual(self) -> bool:
        """Whether its elements are texts or bytes, and no numbers."""
        return self.dtype in TEXTS

    @property
    def wanted(self) -> str:
        """The shape as the client reads it: `[batch, 3, 224, 224]`."""
        return f"[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The model's inputs and outputs, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @cached_property
    def fixed_rows(self) -> int | None:
        """The number of rows that the model insists on, or None when it takes any."""
        sizes = {tensor.shape[0] if tensor.shape else None for tensor in self.inputs.values()}
        size = sizes.pop() if len(sizes) == 1 else None
        return size if isinstance(size, int) else None

    @cached_property
    def splits(self) -> bool:
        """Whether requests of several rows run row by row, because the model was built for exactly one."""
        outputs = {tensor.shape[0] if tensor.shape else None for tensor in self.outputs.values()}
        return self.fixed_rows == 1 and outputs == {1}

    @cached_property
    def rowwise(self) -> bool:
        """Whether requests and answers can be lists of rows: every tensor has a first dimension."""
        return all(tensor.shape for tensor in (*self.inputs.values(), *self.outputs.values()))

    @cached_property
    def batches(self) -> bool:
        """Whether requests may share a run: one named dimension comes first everywhere, and stands nowhere else.

        A size that only an output has may depend on the other rows of its run, so there must be none.
        """
        tensors = (*self.inputs.values(), *self.outputs.values())
        first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
        inner = {size for tensor in tensors for size in tensor.shape[1:] if isinstance(size, str)}
        known = {size for tensor in self.inputs.values() for size in tensor.shape}
        return len(first) == 1 and all(isinstance(size, str) for size in first) and not first & inner and inner <= known

    @cached_property
    def only(self) -> Tensor | None:
        """The input, when there is exactly one."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else None


def read(path: Path) -> Signature:
    """Read a signature.

    Raises:
        StartError: When the file is missing or is not a signature.
    """
    try:
        content = json.loads(path.read_bytes())
        return Signature(_tensors(content["inputs"], "input"), _tensors(content["outputs"], "output"))
    except OSError as error:
        kinds = "a model's directory holds model.onnx and signature.json, a directory of models NAME/VERSION/…"
        raise StartError(f"the signature cannot be read: {error}; {kinds}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{path} is not a signature: {error!r}") from None


def _tensors(entries: Mapping[str, Any], role: str) -> dict[str, Tensor]:
    if not entries:
        raise ValueError(f"it has no {role}s")
    return {name: _tensor(name, entry, role) for name, entry in entries.items()}


def _tensor(name: str, entry: Mapping[str, Any], role: str) -> Tensor:
    dtype = str(entry["dtype"])
    if dtype not in DTYPES:
        raise ValueError(f"{role} {name!r} has the element type {dtype!r}, which cannot be served")
    shape = tuple(_dimension(name, size) for size in entry["shape"])
    limits = entry.get("range")
    return Tensor(name, shape, dtype, None if limits is None else (limits[0], limits[1]))


def _dimension(name: str, size: Any) -> int | str:
    if isinstance(size, str) or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    raise ValueError(f"{name!r} has the dimension {size!r}, which is neither a name nor a size")


def quote(names: Iterable[str]) -> str:
    """Join names for a message: `'a', 'b'`."""
    return ", ".join(repr(name) for name in names)
