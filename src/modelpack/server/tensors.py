"""Turning what a client sent into exactly the tensors that the model takes, or refusing it with the reason."""

from __future__ import annotations

import math
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Invalid
from .signature import quote
from .texts import WORDS, checked, from_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .signature import Signature, Tensor

_PACKED = {"float32": "f", "float64": "d"}
_LEAVES: dict[str, set[type]] = {"f": {float, int}, "i": {int}, "u": {int}, "b": {bool}}


def from_json(value: Any, tensor: Tensor) -> np.ndarray:
    """Convert nested lists, refusing ragged ones and every value that the element type cannot hold.

    The lists are flattened level by level, so that memory stays in proportion to the body whatever it holds.
    """
    level, shape = [value], []
    for axis in range(len(tensor.shape)):
        if axis and not level:  # an empty dimension before: its own check names it
            shape.append(0)
            continue
        strange = next((item for item in level if type(item) is not list), level)
        if strange is not level:
            raise Invalid(
                f"input {tensor.name!r}: expected {len(tensor.shape)} nested arrays of shape {tensor.wanted}, "
                f"found {WORDS[type(strange)]} at depth {axis}",
            )
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise Invalid(
                f"input {tensor.name!r} is ragged: at depth {axis + 1} there are arrays of {min(sizes)} and of "
                f"{max(sizes)} values (expected shape {tensor.wanted})",
            )
        shape.append(sizes.pop())
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return _leaves(level, shape, tensor)


def _leaves(level: list[Any], shape: list[int], tensor: Tensor) -> np.ndarray:
    if tensor.textual:
        return from_words(level, shape, tensor)
    packed = _packed(level, tensor) if tensor.dtype in _PACKED else None
    if packed is not None and not (np.count_nonzero(packed == 0) or np.count_nonzero(packed == 1)):
        return packed.reshape(shape)  # all were numbers: a boolean would be 0 or 1
    allowed = _LEAVES[np.dtype(tensor.dtype).kind]
    if not set(map(type, level)) <= allowed:
        index, strange = next((at, item) for at, item in enumerate(level) if type(item) not in allowed)
        place = [int(axis) for axis in np.unravel_index(index, shape)] if shape else []
        raise Invalid(
            f"input {tensor.name!r}: expected {tensor.dtype}, found {WORDS[type(strange)]} at {place}"
            + (f"; more than {len(shape)} nested arrays" if isinstance(strange, list) else ""),
        )
    if packed is not None:
        return packed.reshape(shape)
    if allowed == {int} and level:
        _within(min(level), max(level), tensor)
    wide = np.array(level, dtype=np.float64 if allowed == {float, int} else tensor.dtype)
    return _narrow(wide, tensor).reshape(shape)


def _packed(level: list[Any], tensor: Tensor) -> np.ndarray | None:
    """Convert numbers, some three times as fast as numpy does; None when one is too large, or is none."""
    try:
        return np.frombuffer(struct.pack(f"={len(level)}{_PACKED[tensor.dtype]}", *level), tensor.dtype)
    except (OverflowError, struct.error):
        return None


def from_bytes(data: memoryview, dtype: np.dtype, shape: tuple[int, ...], name: str) -> np.ndarray:
    """See little-endian bytes as the tensor that they are, without a copy where the machine reads them so.

    Raises:
        Invalid: When the size is not what the shape takes, or a boolean is no boolean.
    """
    count, got = math.prod(shape), len(data)
    if min(shape, default=1) < 0 or count * dtype.itemsize != got:
        need = count * dtype.itemsize
        raise Invalid(f"input {name!r}: shape {list(shape)} of {dtype.name} takes {need} bytes, got {got}")
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        if flags.size and flags.max() > 1:
            raise Invalid(f"input {name!r}: a boolean is the byte 0 or 1, got {flags.max()}")
    order = dtype.newbyteorder("<") if dtype.byteorder == "=" else dtype
    array = np.frombuffer(data, order).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    return _ready(array)


def from_flat(values: list[Any], shape: list[int], tensor: Tensor) -> np.ndarray:
    """Convert values in row-major order, nested in any way, whose shape is said apart."""
    level = values
    while level and type(level[0]) is list:
        if not all(type(item) is list for item in level):
            raise Invalid(f"input {tensor.name!r} is ragged: values stand beside arrays")
        level = list(chain.from_iterable(level))
    if len(level) != math.prod(shape):
        raise Invalid(f"input {tensor.name!r}: shape {shape} takes {math.prod(shape)} values, got {len(level)}")
    return _leaves(level, shape, tensor)


def from_array(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Convert an array of another element type where no value changes its meaning; NaN and infinity may pass."""
    kind, target = array.dtype.kind, np.dtype(tensor.dtype)
    if kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[target.kind]:
        got = "texts" if kind == "O" else array.dtype.name
        raise Invalid(f"input {tensor.name!r}: expected {tensor.dtype}, got {got}")
    if target.kind in "iu" and array.size:
        _within(int(array.min()), int(array.max()), tensor)
    return _narrow(array, tensor)


def _within(low: int, high: int, tensor: Tensor) -> None:
    limits = np.iinfo(tensor.dtype)
    least, most = limits.min, limits.max
    if tensor.range is not None:
        least, most = max(least, int(tensor.range[0])), min(most, int(tensor.range[1]))
    if low < least or high > most:
        raise Invalid(
            f"input {tensor.name!r}: {low if low < least else high} is outside {least} to {most} ({tensor.dtype})",
        )


def _narrow(wide: np.ndarray, tensor: Tensor) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(tensor.dtype, copy=False)
    if wide.dtype != narrow.dtype and narrow.dtype.kind == "f":
        lost = np.isinf(narrow) & np.isfinite(wide)
        if lost.any():
            raise Invalid(f"input {tensor.name!r}: {wide[lost].flat[0]:g} is too large for {tensor.dtype}")
    return _ready(narrow)


def _ready(array: np.ndarray) -> np.ndarray:
    """Give an array as the runtime reads it, in order and aligned; asking first is cheaper than `require` for most."""
    known = array.flags
    return array if known.c_contiguous and known.aligned else np.require(array, requirements=["C", "A"])


def fit(feed: Mapping[str, np.ndarray], signature: Signature, max_rows: int) -> tuple[dict[str, np.ndarray], int]:
    """Turn tensors from anywhere into exactly what the model takes: every input, its element type, range and shape.

    Named dimensions are compared across inputs. NaN and infinity pass: what they mean is the model's affair.

    Returns:
        The tensors in the signature's order, and the number of rows: the size of the first dimension.

    Raises:
        Invalid: Naming the input, what was expected and what came.
    """
    for name in feed:
        if name not in signature.inputs:
            known = quote(signature.inputs)
            raise Invalid(f"unknown input {name[:80]!r}: the model's inputs are {known}")
    fitted = {}
    for name, tensor in signature.inputs.items():
        if name not in feed:
            raise Invalid(f"input {name!r} is missing (shape {tensor.wanted}, {tensor.dtype})")
        array = _element_type(feed[name], tensor)
        if array.dtype.kind in "iu" and array.size and tensor.range is not None:  # an index must not leave its table
            _within(int(array.min()), int(array.max()), tensor)
        fitted[name] = _ready(array)
    return fitted, _shapes(fitted, signature, max_rows)


def _element_type(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    if tensor.textual:
        return checked(array, tensor)
    return array if array.dtype == tensor.dtype else from_array(array, tensor)


def _shapes(feed: Mapping[str, np.ndarray], signature: Signature, max_rows: int) -> int:
    named: dict[str, tuple[int, str]] = {}
    rows = 1
    for name, array in feed.items():
        tensor, got = signature.inputs[name], list(array.shape)
        if len(got) != len(tensor.shape):
            raise Invalid(f"input {name!r}: expected shape {tensor.wanted}, got {got}")
        if got and got[0] > max_rows:
            raise Invalid(f"input {name!r}: {got[0]} rows, and the limit for one request is {max_rows}")
        for axis, (want, size) in enumerate(zip(tensor.shape, got, strict=True)):
            if isinstance(want, str):
                known, other = named.setdefault(want, (size, name))
                if known != size:
                    raise Invalid(f"{want!r} is {known} in input {other!r} but {size} in input {name!r}")
            elif want != size and not (axis == 0 and signature.splits and size > 0):
                raise Invalid(_misfit(tensor, axis, want, got, signature))
            if size == 0 and want != 0:
                raise Invalid(f"input {name!r}: expected shape {tensor.wanted}, got {got}, which is empty")
        rows = got[0] if got else rows
    if signature.splits and len({array.shape[0] for array in feed.values()}) > 1:
        raise Invalid(f"the inputs have different numbers of rows: {_rows(feed)}")
    return rows


def _misfit(tensor: Tensor, axis: int, want: int, got: list[int], signature: Signature) -> str:
    if axis == 0 and signature.fixed_rows is not None and list(tensor.shape[1:]) == got[1:]:
        return f"input {tensor.name!r}: this model takes exactly {want} rows in a request, got {got[0]}"
    return f"input {tensor.name!r}: expected shape {tensor.wanted}, got {got}"


def _rows(feed: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name!r} has {array.shape[0]}" for name, array in feed.items())
