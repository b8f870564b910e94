"""Whether an image comes out the same when it is built again: from nothing, elsewhere, under another user's settings.

Two processes of their own build it, each with a layer cache, a directory, a umask, a time zone and a locale of its own;
only downloads, which are known by their hashes, are shared (the variations of reproducible-builds.org).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack import canonical
from modelpack.artifact import Artifact
from modelpack.container import build, wheels
from modelpack.container.archive import ARCHIVE, RECEIPT
from modelpack.container.compare import differences
from modelpack.container.order import Order
from modelpack.container.platforms import Bases, Platforms
from modelpack.container.reference import BaseRef
from modelpack.errors import ModelpackError, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM = (sys.executable, "-m", "modelpack.container.reproduce")
_SHOWN = 8
_SHARED = ("wheels", "blobs", "references")


@dataclasses.dataclass(frozen=True)
class Circumstance:
    """What one build has that the other has not: a directory, a file mode mask, an environment."""

    folder: str
    umask: int
    environment: Mapping[str, str]


FIRST = Circumstance("one", 0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "PYTHONHASHSEED": "1"})
SECOND = Circumstance(
    "another/place with a longer name",
    0o077,
    {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "2"},
)


def check(
    artifact: Artifact, order: Order, facts: Mapping[str, Any], built: Path, *, past: Sequence[Artifact] = ()
) -> str:
    """Build an image twice, and compare both with each other and with one that was built before.

    Args:
        artifact: The model inside.
        order: What was built.
        facts: More lines for the model card.
        built: The archive that was made of them.
        past: Where the model comes from, see `build.make`.

    Returns:
        One sentence that says what was compared.

    Raises:
        StageError: When bytes differ, naming the layer, the file in it and the bytes; or when a build fails.
    """
    with tempfile.TemporaryDirectory(prefix="modelpack-") as folder:
        note = _note(artifact, order, facts, past)
        first, second = (trial(note, Path(folder), each) for each in (FIRST, SECOND))
        _refuse(differences(first, second), "two builds of one image differ", "report it with these lines")
        then = "its Python or its zlib is another now: delete that image's artifact and build again"
        _refuse(differences(built, first), "the image in the store differs from what this machine builds now", then)
    return "built twice more from nothing, in another directory, umask, time zone and locale: the same bytes"


def _refuse(found: Sequence[str], what: str, then: str) -> None:
    """Fail when there are differences.

    Raises:
        StageError: Naming the first of them.
    """
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise StageError(what, then="\n  ".join([*found[:_SHOWN], *more, then]))


def trial(note: bytes, scratch: Path, circumstance: Circumstance) -> Path:
    """Build an image in a process of its own, from nothing but downloads; gives its archive.

    Raises:
        StageError: When the process fails.
    """
    place = scratch / circumstance.folder
    cache, out = place / "cache" / "modelpack", place / "out"
    for folder in (cache, out):
        folder.mkdir(parents=True)
    for name in _SHARED:
        (cache / name).symlink_to(wheels.cache_directory() / name)
    (place / "order.json").write_bytes(note)
    done = subprocess.run(
        [*PROGRAM, str(place / "order.json"), str(out)],
        cwd=place,
        umask=circumstance.umask,
        env={**os.environ, **circumstance.environment, "XDG_CACHE_HOME": str(cache.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StageError("the image could not be built again", then=done.stderr.strip()[-800:])
    return out / ARCHIVE


def _note(artifact: Artifact, order: Order, facts: Mapping[str, Any], past: Sequence[Artifact]) -> bytes:
    """Say in JSON what to build."""
    paths = [str(item.path.absolute()) for item in (artifact, *past)]
    return canonical.encode({"artifacts": paths, "facts": facts, "order": _written(order)})


def _written(order: Order) -> dict[str, Any]:
    """Put an order into JSON, files by absolute names."""
    values = {field.name: getattr(order, field.name) for field in dataclasses.fields(order)}
    bases = [
        [platform, ref.scheme, ref.name, str(ref.path.absolute()) if ref.path else "", ref.tag]
        for platform, ref in order.bases.refs
    ]
    return {**values, "bases": bases, "platforms": list(order.platforms.names), "template": None}


def _read(values: Mapping[str, Any]) -> Order:
    refs = tuple(
        (platform, BaseRef(scheme, name, Path(path) if path else None, tag))
        for platform, scheme, name, path, tag in values["bases"]
    )
    return Order(**{**values, "bases": Bases(refs), "platforms": Platforms(tuple(values["platforms"]))})


def main(arguments: Sequence[str]) -> int:
    """Build what a note says into a directory; gives the exit code."""
    note, out = json.loads(Path(arguments[0]).read_bytes()), Path(arguments[1])
    try:
        artifact, *past = [Artifact.load(Path(path)) for path in note["artifacts"]]
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            build.make(
                artifact, _read(note["order"]), note["facts"],
                past=past, out=out, scratch=Path(scratch), tell=lambda _text: None,
            )  # fmt: skip
    except ModelpackError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write((out / RECEIPT).read_text("utf-8") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
