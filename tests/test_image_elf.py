"""Shared libraries in an image: only what is loaded of them, and it still loads."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.container import elf
from modelpack.container.layers import Member


class Bytes:
    """Content in memory, in pieces."""

    def __init__(self, data, piece=None):
        self.data, self.size, self.piece = data, len(data), piece or max(1, len(data))

    def chunks(self):
        yield from (self.data[at : at + self.piece] for at in range(0, self.size, self.piece))


def library(segments, behind=b"symbols", table=64):
    """Make a header, its table of segments at a place, and something behind what is loaded."""
    end = max([table + 56 * len(segments), *(offset + length for offset, length in segments)])
    data = bytearray(end) + behind
    data[:64] = struct.pack(
        "<6s10xHHIQQQIHHHHHH", b"\x7fELF\x02\x01", 3, 62, 1, 0, table, end, 0, 64, 56, len(segments), 64, 9, 8
    )
    for at, (offset, length) in enumerate(segments):
        struct.pack_into("<IIQQQQQQ", data, table + 56 * at, 1, 5, offset, 0, 0, length, length, 4096)
    return bytes(data), end


def joined(content):
    return b"".join(content.chunks())


@pytest.mark.parametrize("piece", [None, 64, 100, 4096])
@pytest.mark.parametrize(("segments", "table"), [([(0, 500), (600, 100)], 64), ([(0, 5000)], 4000), ([(0, 64)], 64)])
def test_what_is_not_loaded_is_left_out(segments, table, piece):
    data, end = library(segments, table=table)
    part = elf.trimmed(Bytes(data, piece))
    kept = joined(part)
    assert part.size == len(kept) == end
    assert kept[:40] + kept[48:60] + kept[64:] == data[:40] + data[48:60] + data[64:end]
    assert kept[40:48] + kept[60:64] == bytes(12), "no sections are named"
    assert joined(elf.trimmed(Bytes(kept))) == kept


@given(data=st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\x7fELF\x02\x01" + tail))
def test_anything_else_stays_as_it_is_or_is_cut_at_its_end(data):
    content = elf.trimmed(Bytes(data, 64))
    kept = joined(content)
    assert len(kept) == content.size <= len(data)
    assert kept[64:] == data[64 : len(kept)]
    if not data.startswith(b"\x7fELF\x02\x01"):
        assert kept == data


def test_a_real_library_still_loads(tmp_path):
    """The HTTP parser's wheel carries ten times its code in debug information."""
    spec = importlib.util.find_spec("httptools.parser.parser")
    assert spec is not None
    path = Path(str(spec.origin))
    archive = tmp_path / "wheel.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(path, path.name)
        item = packed.getinfo(path.name)
    member = Member(archive, path.name, item.file_size, item.header_offset, item.compress_size, deflated=True)
    part = elf.trimmed(member)
    assert part.size <= path.stat().st_size
    (tmp_path / path.name).write_bytes(joined(part))
    code = (
        "import httptools, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('httptools.parser.parser', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "class Seen:\n"
        "    def on_url(self, url): print(url.decode())\n"
        "module.HttpRequestParser(Seen()).feed_data(b'GET /here HTTP/1.1\\r\\n\\r\\n')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / path.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/here"
