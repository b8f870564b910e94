"""One way to turn a value into bytes, so that equal values always have equal hashes.

The form is JSON with sorted keys, no white space, UTF-8 and no NaN or infinity (RFC 8785 in spirit; floats use
Python's shortest round-trip form).
"""

from __future__ import annotations

import enum
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path


@runtime_checkable
class Canonical(Protocol):
    """A value that says itself what its identity is, such as a file that is named by path but known by content."""

    def canonical(self) -> object:
        """Give the JSON value that stands for this one in every hash."""


def plain(value: object) -> Any:
    """Reduce a value to JSON types: dict, list, str, int, float, bool, None.

    Raises:
        TypeError: For a value with no canonical form.
    """
    if isinstance(value, Canonical):
        return plain(value.canonical())
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=encode)
    fields = getattr(type(value), "model_fields", None)
    if fields is not None:  # a pydantic model: walked here, because model_dump would hide nested Canonical values
        return {name: plain(getattr(value, name)) for name in fields}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def encode(value: object) -> bytes:
    """Encode a value as canonical JSON.

    >>> encode({"b": 1, "a": [True, None, 1e-3]})
    b'{"a":[true,null,0.001],"b":1}'

    Raises:
        TypeError: For a value with no canonical form.
        ValueError: For NaN or infinity.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: object) -> str:
    """Hash a value: the hexadecimal SHA-256 of its canonical JSON."""
    return hashlib.sha256(encode(value)).hexdigest()


def file_digest(path: Path) -> str:
    """Hash a file's bytes: hexadecimal SHA-256, streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """Hash a file, or a directory by the names and bytes of every file below it, hidden ones left out."""
    if not path.is_dir():
        return file_digest(path)
    entries = {
        str(item.relative_to(path).as_posix()): file_digest(item)
        for item in sorted(path.rglob("*"))
        if item.is_file() and not any(part.startswith(".") for part in item.relative_to(path).parts)
    }
    return digest(entries)
