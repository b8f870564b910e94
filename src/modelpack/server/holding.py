"""What is served, and how one process describes it to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model import Model, Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


@dataclass(frozen=True)
class Holding:
    """All that is served.

    Attributes:
        shelves: By name.
        away: What clients unloaded, without its versions.
    """

    shelves: Mapping[str, Shelf]
    away: Mapping[str, Shelf]

    @property
    def models(self) -> list[Model]:
        """Every version of every model."""
        return [model for shelf in self.shelves.values() for model in shelf.versions.values()]

    def put(self, name: str, shelf: Shelf | None = None, away: Shelf | None = None) -> Holding:
        """Give the same with something else under a name, or nothing."""
        return Holding(_put(self.shelves, name, shelf), _put(self.away, name, away))

    def write(self) -> bytes:
        """Describe it to other processes."""
        return json.dumps([_plain(self.shelves), _plain(self.away)]).encode()


def read(text: bytes, find: Callable[[str, str, Path, Stamp], Model]) -> Holding:
    """Give what another process described.

    Args:
        text: Its description.
        find: Gives a model by name, version, folder and the state of its files.
    """

    def shelf(name: str, versions: dict[str, Any], current: str, wish: Any, before: Any) -> Shelf:
        found = {each: find(name, each, Path(folder), _tuples(files)) for each, (folder, files) in versions.items()}
        return Shelf(found, current, _tuples(wish), _tuples(before))

    shelves, away = ({name: shelf(name, *parts) for name, parts in each.items()} for each in json.loads(text))
    return Holding(shelves, away)


def _put(shelves: Mapping[str, Shelf], name: str, shelf: Shelf | None) -> dict[str, Shelf]:
    others = {each: kept for each, kept in shelves.items() if each != name}
    return others if shelf is None else others | {name: shelf}


def _plain(shelves: Mapping[str, Shelf]) -> dict[str, Any]:
    return {
        name: (
            {version: (str(model.folder), model.stamp) for version, model in shelf.versions.items()},
            shelf.current, shelf.wish, shelf.before,
        )
        for name, shelf in shelves.items()
    }  # fmt: skip


def _tuples(content: Any) -> Any:
    return tuple(map(_tuples, content)) if isinstance(content, list) else content
