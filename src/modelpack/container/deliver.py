"""Finished images on their way out of the store: into the engine that built them, a file, a registry."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from modelpack.container import engine, registry
from modelpack.container.archive import ARCHIVE, RECEIPT
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelpack.artifact import Artifact


def deliver(image: Artifact, output: Path | None, push: str | None, tell: Callable[[str], None]) -> None:
    """Bring an image out of the store: into the engine that built it, a file, a registry. Again, it changes nothing.

    Args:
        image: An image artifact.
        output: File to write; None for none.
        push: Registry reference; None for none.
        tell: Receives what was done.

    Raises:
        MissingError: When a registry or engine does not answer.
        StageError: When the file cannot be written.
    """
    receipt = image.read_json(RECEIPT)
    if receipt["builder"] == "docker" and not engine.present(receipt["id"]):
        engine.load(image.file(ARCHIVE))
        tell(f"loaded {receipt['tag']} into the Docker engine again")
    if output is not None:
        _copy(image.file(ARCHIVE), output)
        tell(f"wrote {output}")
    if push is not None:
        tell(f"pushed {registry.push(image.file(ARCHIVE), push)}")


def _copy(archive: Path, output: Path) -> None:
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, draft)
        draft.replace(output)
    except OSError as error:
        raise StageError(f"cannot write: {error.strerror}", where=str(output)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
