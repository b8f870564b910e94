"""Finished images on their way out of the store: into the engine that built them, a file, a registry."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.container import engine, registry
from modelpack.container.archive import ARCHIVE, RECEIPT
from modelpack.container.proof import remote, seal
from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelpack.artifact import Artifact


def deliver(
    image: Artifact, output: Path | None, push: str | None, tell: Callable[[str], None], *, sign: seal.By | None = None
) -> None:
    """Bring an image out of the store: into the engine that built it, a file, a registry.

    Again, it changes nothing, but that Sigstore's signatures are new ones each time.

    Args:
        image: An image artifact.
        output: File to write; None for none.
        push: Registry reference; None for none.
        tell: Receives what was done.
        sign: What signs what leaves; None leaves it unsigned.

    Raises:
        MissingError: When a registry or engine does not answer, the key needs a password, or Sigstore does not sign.
        StageError: When the file cannot be written.
        UsageError: When there is no such key.
    """
    receipt, archive = image.read_json(RECEIPT), image.file(ARCHIVE)
    if receipt["builder"] == "docker" and not engine.present(receipt["id"]):
        engine.load(archive)
        tell(f"loaded {receipt['tag']} into the Docker engine again")
    if output is not None:
        with _signed(archive, sign, receipt["tag"]) as (source, how):
            _copy(source, output)
        tell(f"wrote {output}{how}")
    if push is not None:
        with _signed(archive, sign, push) as (source, how):
            tell(f"pushed {registry.push(source, push)}")
            count = remote.publish(source, push)
        tell(f"attached {count} documents to it{how}")


@contextlib.contextmanager
def _signed(archive: Path, by: seal.By | None, name: str) -> Iterator[tuple[Path, str]]:
    """Give an archive as it leaves: as it is in the store, or a copy that also holds signatures; and words for that."""
    if by is None:
        yield archive, ""
        return
    with tempfile.TemporaryDirectory(prefix="modelpack-") as folder:
        copy = Path(folder) / ARCHIVE
        how = seal.sign(archive, copy, by, name)
        yield copy, f", {how}"


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
