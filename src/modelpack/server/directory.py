"""What the directory of the models holds, and which version of each it wants to be current.

A directory is one model (`signature.json` lies in it), or holds models as `NAME/signature.json` or
`NAME/VERSION/signature.json`. The file `NAME/current` names the current version, else it is the highest. Names that
begin with a dot are drafts and not looked at: one rename publishes a version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .faults import StartError
from .holding import Shelf, Wish
from .model import Model, Stamp, alike, read_card, stamp
from .signature import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .batching import Run
    from .settings import Settings
    from .statistics import Ledger


class Directory:
    """Where models come from.

    Args:
        settings: Limits, and the directory.
        card: What is known about the model of a directory that is one model; None reads its `card.json`.
        observe: Is told of every run of every model.
        ledger: Where models count what they do.
    """

    def __init__(
        self, settings: Settings, card: Mapping[str, Any] | None, observe: Callable[[Run], None], ledger: Ledger
    ) -> None:
        self.root = Path(settings.model)
        self._settings, self._card, self._observe, self._ledger = settings, card, observe, ledger

    def scan(self, *, serving: bool) -> dict[str, dict[str, Path]]:
        """Find names and versions.

        Args:
            serving: Whether anything is served already: then a directory that has nothing is a mistake.

        Raises:
            StartError: When there is nothing.
        """
        if not (self.root / "signature.json").exists():
            found = several(self.root)
            if found or self._settings.allow_loading:  # what may be loaded later need not be there yet
                return found
            if serving:
                raise StartError(f"no model is left in {self.root}")
        return one(self.root, self._card)

    def shelf(self, name: str, found: Mapping[str, Path], old: Shelf | None = None) -> Shelf:
        """Give a model as it is here, with what is loaded already where no file changed.

        Raises:
            StartError: When a version cannot be read.
        """
        versions = {}
        for version, folder in found.items():
            kept = old.versions.get(version) if old else None
            if kept is None or kept.stamp != stamp(folder):
                kept = self._model(name, version, folder)
            versions[version] = kept
        wanted = wish(self.root, name, found)
        current = old.current if old and old.wish == wanted and old.current in versions else wanted[0]
        before = old.before if old else ()
        if old and old.current != current:
            before = (*(version for version in before if version != old.current), old.current)
        return Shelf(versions, current, wanted, before)

    def same(self, name: str, version: str, folder: Path, files: Stamp) -> Model:
        """Give a version with just these files.

        Raises:
            StartError: When it has others now.
        """
        try:
            model = self._model(name, version, folder)
        except OSError as error:  # they go at this moment
            raise StartError(f"the files in {folder} cannot be read: {error}") from None
        if not alike(model.stamp, files):
            raise StartError(f"the files in {folder} are no longer those that are served: SIGHUP lets all read them")
        return model

    def _model(self, name: str, version: str, folder: Path) -> Model:
        card = self._card if folder == self.root else None
        return Model(folder, self._settings, self._ledger, name=name, version=version, card=card, observe=self._observe)


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
