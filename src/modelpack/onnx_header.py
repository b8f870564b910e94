"""The inputs of an ONNX file, read from its bytes without any library, so that a recipe can be checked in no time.

The file is a protocol buffer (onnx.proto3): model 7 → graph; graph 11 → inputs, 5 → initializers; value 1 → name,
2 → type; type 1 → tensor: 1 → element type, 2 → shape; shape 1 → dimensions: 1 → size, 2 → name.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from modelpack.errors import UsageError
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ELEMENTS = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""ONNX element types that models may take, by number."""


def inputs(path: Path) -> dict[str, TensorSpec]:
    """Read the inputs that a model must be given, in the file's order; those that are no tensors are left out.

    Raises:
        UsageError: When the file is no ONNX model.
    """
    try:
        if not path.stat().st_size:
            raise UsageError("cannot be read as an ONNX file: it is empty", where=str(path))
        with path.open("rb") as stream:
            # Closed when the last view of it is gone, which an error's traceback may hold for a while.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _inputs(memoryview(data))
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"cannot be read as an ONNX file: {error}", where=str(path)) from error


def _inputs(data: memoryview) -> dict[str, TensorSpec]:
    graphs = [value for number, value in _fields(data) if number == 7 and isinstance(value, memoryview)]
    if not graphs:
        raise ValueError("it holds no graph")
    found, initialized = {}, set()
    for number, value in _fields(graphs[-1]):
        if number == 5 and isinstance(value, memoryview):
            initialized.add(_text(value, 8))
        elif number == 11 and isinstance(value, memoryview):
            spec = _spec(_text(value, 1), _inner(value, 2, 1))
            if spec is not None:
                found[_text(value, 1)] = spec
    return {name: spec for name, spec in found.items() if name not in initialized}


def _spec(name: str, tensor: memoryview | None) -> TensorSpec | None:
    if tensor is None:
        return None
    kind = next((value for number, value in _fields(tensor) if number == 1), 0)
    shape = _inner(tensor, 2)
    dtype = ELEMENTS.get(kind) if isinstance(kind, int) else None
    if dtype is None or shape is None:
        return None
    sizes = []
    for axis, (_, dimension) in enumerate(_fields(shape)):
        facts = dict(_fields(dimension)) if isinstance(dimension, memoryview) else {}
        size, word = facts.get(1, 0), facts.get(2, b"")
        given = bytes(word).decode() if not isinstance(word, int) else ""
        sizes.append(dimension_of(name, axis, size if isinstance(size, int) else 0, given))
    return TensorSpec.model_validate({"shape": sizes, "dtype": dtype})


def dimension_of(tensor: str, axis: int, size: int, name: str) -> int | str:
    """Give a dimension's size, or a name for it where it has none that can be written in a recipe.

    >>> dimension_of("x", 0, 3, ""), dimension_of("x", 0, 0, "batch size"), dimension_of("x.1", 2, 0, "")
    (3, 'batch_size', 'x_1_2')
    """
    if 0 < size < 2**63:
        return size
    spelled = "".join(char if char.isascii() and char.isalnum() else "_" for char in name)
    if not spelled.strip("_"):
        spelled = f"{''.join(char if char.isascii() and char.isalnum() else '_' for char in tensor)}_{axis}"
    return spelled if not spelled[0].isdigit() else f"d{spelled}"


def _inner(message: memoryview | None, *path: int) -> memoryview | None:
    """Follow field numbers into a message; the last occurrence of a field counts."""
    for wanted in path:
        if message is None:
            return None
        found = [value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview)]
        message = found[-1] if found else None
    return message


def _text(message: memoryview, wanted: int) -> str:
    found = _inner(message, wanted)
    return bytes(found).decode() if found is not None else ""


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Walk a message's fields: number, and an integer or the bytes; fixed-width numbers are passed over."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it is cut short")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("its bytes are no protocol buffer")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("its bytes are no protocol buffer")
