"""Shared libraries without what only debuggers and linkers read: symbol tables, debug information, section headers.

A library is loaded by its segments (System V ABI, "Program Loading"): what lies behind the last one is never mapped,
and the table of sections is never looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelpack.container.layers import Readable

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: both architectures that images have
_HEADER = struct.Struct(
    "<32xQQ4xHHHHHH"
)  # e_phoff, e_shoff, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx


@dataclass(frozen=True)
class Library:
    """The loaded part of a library.

    Attributes:
        whole: All of it.
        size: Bytes of the part.
    """

    whole: Readable
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Give the part piece by piece, its header changed to name no sections."""
        left = self.size
        for piece in self.whole.chunks():
            part = piece[:left]
            if left == self.size:
                part = part[:40] + bytes(8) + part[48:60] + bytes(4) + part[64:]
            left -= len(part)
            yield part
            if not left:
                return


def trimmed(content: Readable) -> Readable:
    """Give the loaded part of a library; whatever else it is, or when it has no other part, the content itself."""
    pieces = content.chunks()
    head = next(pieces, b"")
    if not head.startswith(_MAGIC) or len(head) < 64:
        return content
    table, _, _, size, count, *_ = _HEADER.unpack_from(head)
    while len(head) < table + size * count and (piece := next(pieces, b"")):
        head += piece
    end = max(64, table + size * count)
    if not count or size != 56 or len(head) < end:
        return content
    for at in range(table, end, size):
        offset, length = struct.unpack_from("<8xQ16xQ", head, at)
        end = max(end, offset + length)
    return Library(content, end) if end < content.size else content
