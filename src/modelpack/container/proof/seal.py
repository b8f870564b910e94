"""An archive signed: the same image with signatures beside it, and what was said about it, signed too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelpack.container.layers import chunks
from modelpack.container.proof import keyed, keyless, keys, referrers
from modelpack.container.proof.found import find
from modelpack.container.reference import BaseRef, ImageName

if TYPE_CHECKING:
    from modelpack.container.proof.referrers import Seal

By = Path | Literal["sigstore"]
"""What signs: a private key's file, see `keys.signer`, or Sigstore, see `keyless`."""


def check(by: By) -> None:
    """See that signing can begin.

    Raises:
        MissingError: When the key needs a password and nobody can be asked, or nobody says who signs.
        StageError: When the password is wrong.
        UsageError: When there is no such key.
    """
    if isinstance(by, Path):
        keys.signer(by)
    else:
        keyless.check()


def sign(archive: Path, output: Path, by: By, name: str) -> str:
    """Write a signed copy of an archive; signing again with a key gives the same bytes.

    Args:
        archive: An archive that `archive.write` made.
        output: The file to write.
        by: What signs.
        name: Reference under which the image will be known; its repository is part of what is signed.

    Returns:
        What was done, and by whom where only signing tells.

    Raises:
        MissingError: When the key needs a password and nobody can be asked, or Sigstore does not sign.
        StageError: When the archive is damaged or the password wrong.
        UsageError: When there is no such key.
    """
    found, parsed = find(BaseRef("oci-archive", archive.name, archive), archive.parent), ImageName.parse(name)
    seal: Seal = keyed.KeySeal(keys.signer(by)) if isinstance(by, Path) else keyless.seal()
    sealed = referrers.sealed(found.archive, f"{parsed.registry}/{parsed.repository}", seal)
    with output.open("wb") as stream:
        for piece in chunks(sealed.entries()):
            stream.write(piece)
    return seal.label
