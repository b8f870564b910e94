"""What a stack of layers looks like from inside: names after whiteouts, links followed, and the Python in it."""

from __future__ import annotations

import posixpath
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelpack.container.tarball import TarMember

SUPPORTED = (11, 12, 13, 14)
"""Minor versions of Python 3 that the pinned wheels exist for."""
MACHINES = {0x3E: "amd64", 0xB7: "arm64"}
"""ELF e_machine → OCI architecture, for the machines that the pinned wheels exist for."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON = re.compile(r"python3\.(\d+)")
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class Python:
    """An interpreter inside an image: absolute path, minor version of Python 3, OCI architecture."""

    path: str
    minor: int
    architecture: str


@dataclass
class Tree:
    """Every name that is visible in a stack of layers."""

    nodes: dict[str, TarMember] = field(default_factory=dict)

    def add(self, members: Iterable[TarMember]) -> None:
        """Put a layer on top: whiteouts hide what lies below them, never what the same layer brings."""
        fresh: dict[str, TarMember] = {}
        hidden: set[str] = set()
        opaque: set[str] = set()
        for member in members:
            folder, _, name = member.name.rpartition("/")
            if name == _OPAQUE:
                opaque.add(folder)
            elif name.startswith(".wh."):
                hidden.add(posixpath.join(folder, name.removeprefix(".wh.")))
            elif member.name:
                fresh[member.name] = member
        # A name that is not a directory any more hides everything that was below it.
        hidden |= {name for name, item in fresh.items() if item.kind != "directory"}
        if hidden or opaque:
            self.nodes = {name: node for name, node in self.nodes.items() if not _covered(name, hidden, opaque)}
        self.nodes |= fresh

    def resolve(self, name: str) -> TarMember | None:
        """Find what a path leads to, following links in every part of it; None when nothing is there."""
        parts, done = name.strip("/").split("/"), ""
        for _ in range(512):
            if not parts:
                return self.nodes.get(done)
            step = posixpath.normpath(posixpath.join(done, parts.pop(0)))
            node = self.nodes.get(step)
            if node is None or node.kind not in ("symlink", "link"):
                done = step
                continue
            base = "" if node.kind == "link" or node.target.startswith("/") else done
            target = posixpath.normpath(posixpath.join("/", base, node.target.lstrip("/")))
            parts, done = [*target.strip("/").split("/"), *parts], ""
        return None


def _covered(name: str, hidden: set[str], opaque: set[str]) -> bool:
    if name in hidden:
        return True
    while name:
        name = name.rpartition("/")[0]
        if name in hidden or name in opaque:
            return True
    return False


def python(tree: Tree, search: str, where: str) -> Python:
    """Find the Python that a shell in the image would find first, and check that the server can run on it.

    Args:
        tree: The image's names.
        search: Its ``PATH``.
        where: Names it in errors.

    Raises:
        StageError: When there is none, or it lacks what the server and its wheels need.
    """
    found = list(_pythons(tree, search))
    if not found:
        raise StageError("the base has no Python 3: no executable python3.N on its PATH", where=where, then=ADVICE)
    usable = [item for item in found if item[1] in SUPPORTED]
    if not usable:
        versions = ", ".join(f"3.{minor}" for _, minor, _ in found)
        raise StageError(
            f"the base has Python {versions}; the server's wheels exist for 3.11 to 3.14", where=where, then=ADVICE
        )
    path, minor, node = usable[0]
    _check_library(tree, path, minor, where)
    return Python(path, minor, _architecture(node, path, where))


def _pythons(tree: Tree, search: str) -> Iterator[tuple[str, int, TarMember]]:
    """Give every executable ``python3.N`` in the order of the path, newest first in each directory."""
    for folder in search.split(":"):
        prefix = folder.strip("/") + "/python3."
        names = [name for name in tree.nodes if name.startswith(prefix) and _PYTHON.fullmatch(name.rpartition("/")[2])]
        for name in sorted(names, key=lambda item: -_minor(item)):
            node = tree.resolve(name)
            if node is not None and node.kind == "file" and node.mode & 0o111:
                yield f"/{name}", _minor(name), node


ADVICE = "use docker://python:3.11-slim, a distroless Python image, or a rootfs from `make base`"


def _minor(name: str) -> int:
    return int(name.rpartition(".")[2])


def _check_library(tree: Tree, path: str, minor: int, where: str) -> None:
    names: Sequence[str] = list(tree.nodes)
    if any(posixpath.basename(name).startswith("ld-musl-") for name in names):
        raise StageError("the base uses musl; onnxruntime has no wheels for it", where=where, then=ADVICE)
    library = posixpath.join(posixpath.dirname(posixpath.dirname(path)), "lib", f"python3.{minor}")
    if tree.resolve(f"{library}/asyncio/__init__.py") is None:
        raise StageError(
            f"the base's Python at {path} lacks the standard library's asyncio (python3-minimal does)",
            where=where,
            then=ADVICE,
        )
    if not any(posixpath.basename(name).startswith("libstdc++.so.6") for name in names):
        raise StageError("the base has no libstdc++.so.6, which onnxruntime needs", where=where, then=ADVICE)


def _architecture(node: TarMember, path: str, where: str) -> str:
    if node.head[:4] != b"\x7fELF" or len(node.head) < 20:
        raise StageError(f"{path} is not an ELF program", where=where, then=ADVICE)
    (machine,) = struct.unpack("<H", node.head[18:20])
    if machine not in MACHINES:
        raise StageError(
            f"{path} is built for ELF machine {machine:#x}; the wheels exist for amd64 and arm64", where=where
        )
    return MACHINES[machine]
