"""An archive signed: the same image with signatures beside it, and what was said about it in signed envelopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.container.layers import chunks
from modelpack.container.proof import keys, referrers
from modelpack.container.proof.found import find
from modelpack.container.reference import BaseRef, ImageName

if TYPE_CHECKING:
    from pathlib import Path


def sign(archive: Path, output: Path, key: Path, name: str) -> None:
    """Write a signed copy of an archive; signing again gives the same bytes.

    Args:
        archive: An archive that `archive.write` made.
        output: The file to write.
        key: A private key, see `keys.signer`.
        name: Reference under which the image will be known; its repository is part of what is signed.

    Raises:
        MissingError: When the key needs a password and nobody can be asked.
        StageError: When the archive is damaged or the password wrong.
        UsageError: When there is no such key.
    """
    signer, parsed = keys.signer(key), ImageName.parse(name)
    found = find(BaseRef("oci-archive", archive.name, archive), archive.parent)
    sealed = referrers.sealed(found.archive, f"{parsed.registry}/{parsed.repository}", signer)
    with output.open("wb") as stream:
        for piece in chunks(sealed.entries()):
            stream.write(piece)
