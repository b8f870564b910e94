"""What the directory of the models holds, and which version of each it wants to be current.

A directory is one model (`signature.json` lies in it), or holds models as `NAME/signature.json` or
`NAME/VERSION/signature.json`. The file `NAME/current` names the current version, else it is the highest. Names that
begin with a dot are drafts and not looked at: one rename publishes a version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .faults import StartError
from .model import Model, Stamp, read_card, stamp
from .signature import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Wish = tuple[str, Stamp, Stamp]  # version, its files, the file `current`


@dataclass(frozen=True)
class Shelf:
    """The versions of one model.

    Attributes:
        versions: By name.
        current: The one that answers where none is named.
        wish: What the directory wants to be current, and how it looked then; a client's choice holds while it stays so.
        before: Versions that were current before, oldest first.
    """

    versions: Mapping[str, Model]
    current: str
    wish: Wish
    before: tuple[str, ...] = ()


def several(root: Path) -> dict[str, dict[str, Path]]:
    """Find the names and versions of a directory that holds models."""
    found = {folder.name: _versions(folder) for folder in _folders(root)}
    return {name: versions for name, versions in found.items() if versions}


def one(root: Path, card: Mapping[str, Any] | None) -> dict[str, dict[str, Path]]:
    """Give the name and version of a directory that is one model, as its card has them; None reads `card.json`."""
    known = {"name": "model", "version": "1", **(read_card(root) if card is None else card)}
    return {str(known["name"]): {str(known["version"]): root}}


def wish(root: Path, name: str, found: Mapping[str, Path]) -> Wish:
    """Say which version of a model the directory wants to be current, and by which files.

    Raises:
        StartError: When it names one that is not there.
    """
    if root in found.values():  # a directory that is one model has one version
        return next(iter(found)), stamp(root), ()
    version = _current(root / name, found)
    return version, stamp(found[version]), stamp(root / name, "current")


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir() and each.name[0] != ".") if root.is_dir() else []


def _versions(folder: Path) -> dict[str, Path]:
    if (folder / "signature.json").exists():
        return {str(read_card(folder).get("version", "1")): folder}
    return {each.name: each for each in _folders(folder) if (each / "signature.json").exists()}


def _current(folder: Path, versions: Mapping[str, Path]) -> str:
    try:
        named = (folder / "current").read_text("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return max(versions, key=age)
    except (OSError, ValueError) as error:
        raise StartError(f"{folder / 'current'} cannot be read: {error}") from None
    if named not in versions:
        raise StartError(f"{folder / 'current'} names version {named!r}, and there is {quote(versions)}")
    return named


def age(version: str) -> tuple[int, int, str]:
    """Order versions: whole numbers by value, above any other text."""
    return (1, int(version), version) if version.isdecimal() else (0, 0, version)
