"""An image examined offline: every byte of it, and everything that is said about it. One row a check."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.container.layers import chunks
from modelpack.container.layout import mapping
from modelpack.container.proof import found as finding
from modelpack.container.proof import statements
from modelpack.container.proof.inside import look
from modelpack.errors import StageError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelpack.container.blob import Blob
    from modelpack.container.oci import Image
    from modelpack.container.proof.found import Found
    from modelpack.container.proof.inside import Inside
    from modelpack.container.proof.statements import Trust
    from modelpack.container.reference import BaseRef

OK, FAILED, UNCHECKED = "ok", "failed", "not checked"
_AGAIN = "take the image from where it was built again"
_REPACKED = f"{_AGAIN}; a copy that another tool wrote is examined as an OCI layout or in a registry"


@dataclass(frozen=True)
class Row:
    """What one check found.

    Attributes:
        check: Its name.
        verdict: ``ok``, ``failed`` or ``not checked``.
        cause: What was compared, or what is wrong.
        remedy: What to do about it.
        where: The platform, where the image is for several.
    """

    check: str
    verdict: str
    cause: str
    remedy: str = ""
    where: str = ""

    def to_json(self) -> dict[str, str]:
        """Give it as a JSON object."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "cause": self.cause,
            "remedy": self.remedy,
            "where": self.where,
        }


@dataclass(frozen=True)
class Report:
    """What an examination found: the image's digest, empty where none could be read, and its rows."""

    digest: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.verdict != FAILED for row in self.rows)


def examine(ref: BaseRef, trust: Trust | None, cache: Path) -> Report:
    """Examine an image.

    Args:
        ref: Where it is: ``oci-archive``, ``oci`` or ``docker``.
        trust: Whose signature it must bear; signatures are not checked without anyone.
        cache: Directory for what a registry sends.

    Raises:
        MissingError: When a registry does not answer.
        UsageError: When there is no such image, or the reference fits several.
    """
    try:
        found = finding.find(ref, cache)
    except StageError as error:
        return Report("", (Row("image", FAILED, str(error.what), error.then or _AGAIN),))
    rows = list(_archive(found)) if found.path is not None else []
    for image in found.archive.images:
        where = image.platform if len(found.archive.images) > 1 else ""
        rows += _image(found, image, trust, where)
    rows.append(_told("signature", lambda: statements.signature(found, trust), "", statements.UNSIGNED))
    return Report(found.digest, tuple(rows))


def _told(check: str, look_at: Callable[[], str], where: str, remedy: str = _AGAIN) -> Row:
    """Run a check: it gives what it compared, or raises what is wrong."""
    try:
        return Row(check, OK, look_at(), where=where)
    except statements.NotCheckedError as error:
        return Row(check, UNCHECKED, error.what, error.then, where)
    except StageError as error:
        return Row(check, FAILED, error.what, error.then or remedy, where)


def _archive(found: Found) -> Iterator[Row]:
    yield _told("archive", lambda: _written(found), "", _REPACKED)


def _written(found: Found) -> str:
    """Compare the file with what modelpack writes for the image: headers, padding and documents have no digest.

    Raises:
        StageError: Naming the first byte that differs.
    """
    assert found.path is not None, "only archives are files"
    size, at = found.path.stat().st_size, 0
    with found.path.open("rb") as stream:
        for piece in chunks(found.archive.entries()):
            there = stream.read(len(piece))
            if there != piece:
                pairs = itertools.zip_longest(there, piece)
                raise StageError(f"byte {at + next(n for n, (a, b) in enumerate(pairs) if a != b)} is not as written")
            at += len(piece)
    if at != size:
        raise StageError(f"{size - at} bytes too many")
    return f"all {size} bytes as they are written"


def _image(found: Found, image: Image, trust: Trust | None, where: str) -> Iterator[Row]:
    inside: list[Inside] = []

    def seen() -> Inside:
        if not inside:
            raise StageError("the layers cannot be read")
        return inside[0]

    yield _told("digests", lambda: _digests(image), where)
    yield _told("layers", lambda: _layers(image, inside, found.where), where)
    yield _told("provenance", lambda: statements.provenance(found, image, trust), where, statements.UNSTATED)
    yield _told("model", lambda: statements.model(found, image, seen()), where)
    yield _told("contents", lambda: statements.contents(found, image, seen(), trust), where, statements.UNSTATED)


def _blobs(image: Image) -> list[Blob]:
    return [layer.content for layer in image.layers]  # type: ignore[misc]


def _digests(image: Image) -> str:
    for blob in _blobs(image):
        for _ in blob.chunks():
            pass  # reading to the end is what compares the digest
    return f"manifest, configuration and {len(image.layers)} layers have their digests"


def _layers(image: Image, inside: list[Inside], where: str) -> str:
    """Unpack every layer, and compare what comes out with the configuration.

    Raises:
        StageError: When a layer is another than the configuration names.
    """
    seen = look(_blobs(image), where)
    wrong = [str(n + 1) for n, layer in enumerate(image.layers) if seen.diff_ids[n] != layer.diff_id]
    if wrong:
        raise StageError(f"layer {listed(wrong)} is not the one that the configuration names")
    history = mapping(json.loads(image.config)).get("history")
    told = [item for item in history if not mapping(item).get("empty_layer")] if isinstance(history, list) else []
    if history and len(told) != len(image.layers):
        raise StageError("the configuration's history counts the layers differently")
    inside.append(seen)
    return "unpacked, they are what the configuration names"


def as_json(report: Report) -> list[Any]:
    """Give the rows as JSON."""
    return [row.to_json() for row in report.rows]
