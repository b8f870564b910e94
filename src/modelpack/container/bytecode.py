"""Byte code for files that will lie in an image, so that a read-only container need not compile them at every start.

The ``.pyc`` files carry unchecked hashes (PEP 552): Python never looks at the source's time. A fresh interpreter
compiles them all, in order: what `marshal` writes depends on what its process has already interned.
"""

from __future__ import annotations

import json
import posixpath
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.container.layers import Entry, Member
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORKER = """
import importlib.util, json, marshal, sys, zipfile
assert sys.version_info[:2] == (3, int(sys.argv[1]))
archives, output = {}, open(sys.argv[2], "wb")
for where, member, target in json.load(sys.stdin):
    if member:
        if where not in archives:
            archives[where] = zipfile.ZipFile(where)
        source = archives[where].read(member)
    else:
        with open(where, "rb") as stream:
            source = stream.read()
    try:
        code = compile(source, target, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        data = b""
    else:
        data = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
        data += marshal.dumps(code)
    output.write(len(data).to_bytes(8, "little") + data)
output.close()
"""


def interpreter(minor: int) -> str | None:
    """Find a Python on this machine with the image's minor version: this one, or ``python3.N`` on the path."""
    if sys.version_info[:2] == (3, minor) and sys.implementation.name == "cpython":
        return sys.executable
    return shutil.which(f"python3.{minor}")


def compiled(sources: Sequence[Entry], minor: int, program: str) -> list[Entry]:
    """Compile the Python files among some entries.

    Args:
        sources: Files of an image.
        minor: Minor version of the image's Python 3.
        program: An interpreter of that version, see `interpreter`.

    Returns:
        One ``__pycache__`` entry for every file that compiles.

    Raises:
        StageError: When the interpreter fails.
    """
    modules = sorted((entry for entry in sources if entry.name.endswith(".py")), key=lambda entry: entry.name)
    with tempfile.TemporaryDirectory() as folder:
        work = [_job(entry, Path(folder), number) for number, entry in enumerate(modules)]
        output = Path(folder) / "output"
        done = subprocess.run(
            [program, "-S", "-B", "-W", "ignore", "-c", _WORKER, str(minor), str(output)],
            input=json.dumps(work), env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise StageError(f"compiling for Python 3.{minor} failed", where=program, then=done.stderr.strip()[-400:])
        results = []
        with output.open("rb") as stream:
            for entry in modules:
                data = stream.read(int.from_bytes(stream.read(8), "little"))
                folder_name, name = posixpath.split(entry.name)
                if data:
                    cached = f"{folder_name}/__pycache__/{name.removesuffix('.py')}.cpython-3{minor}.pyc"
                    results.append(Entry(cached, data))
    return results


def _job(entry: Entry, folder: Path, number: int) -> tuple[str, str, str]:
    """Say where a source lies (archive and member, or file) and what path it will have in the image."""
    content = entry.content
    if isinstance(content, Member):
        return str(content.archive), content.name, f"/{entry.name}"
    if isinstance(content, Path):
        return str(content), "", f"/{entry.name}"
    path = folder / f"{number}.py"
    path.write_bytes(b"".join(entry.chunks()))
    return str(path), "", f"/{entry.name}"
