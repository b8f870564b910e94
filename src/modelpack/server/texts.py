"""Texts and bytes as elements of tensors: what clients send and get where a model's interface takes images or texts.

A tensor of the element type `string` holds `str`, one of `bytes` holds `bytes`; numpy carries both as objects. JSON has
texts as they are and bytes in base64, bare or as `{"b64": "…"}`; binary tensors have both as they are, each behind its
length.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .signature import Tensor

MEDIA = {"bytes": ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"), "string": ("text/plain",)}
"""In which forms one value can be a whole body, by element type."""
WORDS = {
    dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a whole number", float: "a number",
    type(None): "null",
}  # fmt: skip
"""What JSON calls a value."""


def wrapped(value: Any) -> bool:
    """Say whether a value is `{"b64": "…"}`: bytes in the words of TensorFlow Serving."""
    return isinstance(value, dict) and list(value) == ["b64"]


def from_words(values: list[Any], shape: list[int], tensor: Tensor) -> np.ndarray:
    """Read JSON strings in row-major order.

    Raises:
        Invalid: Naming the place of a value that is none, or is not base64 where bytes are expected.
    """
    array = np.empty(len(values), object)
    for at, value in enumerate(values):
        array[at] = _word(value, at, shape, tensor)
    return array.reshape(shape)


def _word(value: Any, at: int, shape: list[int], tensor: Tensor) -> str | bytes:
    word = value["b64"] if tensor.dtype == "bytes" and wrapped(value) else value
    if type(word) is not str:
        wanted = "a string" if tensor.dtype == "string" else "a string in base64"
        raise Invalid(f"input {tensor.name!r}: expected {wanted}, found {WORDS[type(word)]} at {_place(at, shape)}")
    if tensor.dtype == "string":
        return word
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"input {tensor.name!r}: the string at {_place(at, shape)} is not base64: {error}") from None


def _place(at: int, shape: list[int]) -> list[int]:
    return [int(axis) for axis in np.unravel_index(at, shape)] if shape else []


def whole(only: Tensor | None) -> tuple[str, ...]:
    """Give the media types in which a whole body can be a model's only input: none where that is numbers."""
    return MEDIA[only.dtype] if only is not None and only.textual else ()


def from_body(body: bytes, tensor: Tensor) -> np.ndarray:
    """See a whole body as one row of one value; see `from_values`."""
    return from_values([body], [1], tensor)


def from_values(values: Sequence[bytes], shape: Sequence[int], tensor: Tensor) -> np.ndarray:
    """Read values that stand apart, in row-major order.

    Raises:
        Invalid: When there are more or fewer than the shape takes, or a text is not UTF-8.
    """
    if len(values) != math.prod(shape):
        raise Invalid(f"input {tensor.name!r}: shape {list(shape)} takes {math.prod(shape)} values, got {len(values)}")
    array = np.empty(len(values), object)
    array[:] = [_decoded(value, at, tensor) for at, value in enumerate(values)]
    return array.reshape(shape)


def _decoded(value: bytes, at: int, tensor: Tensor) -> str | bytes:
    if tensor.dtype == "bytes":
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"input {tensor.name!r}: text {at} is not UTF-8: {error}") from None


def from_prefixed(data: memoryview, shape: tuple[int, ...], tensor: Tensor) -> np.ndarray:
    """Read values in row-major order, each behind its length in four little-endian bytes.

    Raises:
        Invalid: When lengths, size and shape do not go together, or a text is not UTF-8.
    """
    count, place = math.prod(shape), 0
    if min(shape, default=1) < 0 or count * 4 > len(data):
        raise Invalid(f"input {tensor.name!r}: shape {list(shape)} of BYTES takes more than the {len(data)} bytes here")
    values: list[bytes] = []
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, place) if place + 4 <= len(data) else (len(data),)
        place += 4 + size
        if place > len(data):
            at = len(values)
            raise Invalid(f"input {tensor.name!r}: value {at} reaches beyond the {len(data)} bytes of the tensor")
        values.append(bytes(data[place - size : place]))
    if place != len(data):
        raise Invalid(f"input {tensor.name!r}: {len(data) - place} bytes follow its {count} values")
    return from_values(values, shape, tensor)


def to_prefixed(array: np.ndarray) -> bytes:
    """Write values in row-major order, each behind its length in four little-endian bytes."""
    values = [value if isinstance(value, bytes) else value.encode() for value in array.reshape(-1)]
    return b"".join(part for value in values for part in (struct.pack("<I", len(value)), value))


def checked(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Give an array back whose elements are what the tensor holds.

    Raises:
        Invalid: When they are not.
    """
    kind: type = str if tensor.dtype == "string" else bytes
    if array.dtype != object or not all(type(value) is kind for value in array.reshape(-1)):
        given = "other values" if array.dtype == object else array.dtype.name
        raise Invalid(f"input {tensor.name!r}: expected {tensor.dtype}, got {given}")
    return array
