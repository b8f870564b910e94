"""Where results appear: all at once under their name, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Protocol

    class Pieces(Protocol):
        """Bytes that come piece by piece."""

        def chunks(self) -> Iterator[bytes]:
            """Give them."""


def copy(content: Pieces, path: Path) -> None:
    """Write a new file, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        for piece in content.chunks():
            stream.write(piece)


@contextlib.contextmanager
def appearing(output: Path, *, is_file: bool = False) -> Iterator[Path]:
    """Give a place beside `output` to write to, which takes its name when all is well.

    Args:
        output: A directory that is empty or not there yet; or a file, replaced when it is there.
        is_file: Which of them.

    Raises:
        StageError: When it cannot be written.
        UsageError: When something else is there.
    """
    free = not output.is_dir() if is_file else not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not free or output.is_symlink():
        raise UsageError("the place is not empty", where=str(output), then="name another --output")
    place = output.absolute()
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        if not is_file:
            draft.mkdir()
        yield draft
        os.replace(draft, place)  # noqa: PTH105 - an empty directory is replaced too
    except OSError as error:
        raise StageError(f"cannot write: {error.strerror or error}", where=str(output)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink() if is_file else shutil.rmtree(draft, ignore_errors=True)
