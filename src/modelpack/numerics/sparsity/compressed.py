"""How small a file becomes when it is compressed, which is what zeros are good for."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LEVEL = 6
"""Of zlib: its default."""

_CHUNK = 2**20


def size(path: Path) -> int:
    """Count the bytes of a file compressed by zlib, as gzip, zip files and layers of images have it."""
    packer = zlib.compressobj(LEVEL)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())
