"""The models that are served, by name and version: exchanged while requests run, rolled back.

Without a version a request gets the current one: what the directory wants to be current, or what a client chose.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import directory
from .directory import Shelf
from .faults import Invalid, StartError, Unknown
from .model import Model, stamp
from .signature import quote
from .statistics import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .batching import Run
    from .settings import Settings

_log = logging.getLogger("modelpack.server")


class Catalog:
    """All models of one directory. A change is prepared beside what is served and then takes effect at once.

    Args:
        settings: Limits, and the directory.
        card: What is known about the model of a directory that is one model; None reads its `card.json`.
        observe: Is told of every run of every model.
        ledger: Where models count what they do; one of its own when None.

    Raises:
        StartError: When there is no model, or one has no readable signature.
    """

    def __init__(
        self,
        settings: Settings,
        card: Mapping[str, Any] | None,
        observe: Callable[[Run], None] = lambda _run: None,
        ledger: Ledger | None = None,
    ) -> None:
        self.root = Path(settings.model)
        self._settings, self._card, self._observe = settings, card, observe
        self.ledger = ledger or Ledger()
        self._changing = asyncio.Lock()
        self._unloaded: dict[str, Shelf] = {}  # by clients
        self._shelves: dict[str, Shelf] = {}
        self._shelves = {name: self._shelf(name, found) for name, found in self._scan().items()}

    @property
    def models(self) -> list[Model]:
        """Every version of every model."""
        return [model for shelf in self._shelves.values() for model in shelf.versions.values()]

    @property
    def current(self) -> dict[str, Model]:
        """The current version of every model."""
        return {name: shelf.versions[shelf.current] for name, shelf in self._shelves.items()}

    def find(self, name: str = "", version: str = "") -> Model:
        """Give a model; without a name the only one, without a version the current one.

        Raises:
            Invalid: When several are served and none is named.
            Unknown: When there is none of this name or version, or none at all.
        """
        if not name:
            if not self._shelves:
                raise Unknown("this server has no model yet")
            if len(self._shelves) != 1:
                raise Invalid(f"this server has the models {quote(self._shelves)}: name one in the path")
            name = next(iter(self._shelves))
        if (shelf := self._shelves.get(name)) is None:
            raise Unknown(f"no model {name[:80]!r}: this server has {quote(self._shelves)}")
        if (model := shelf.versions.get(version or shelf.current)) is None:
            raise Unknown(f"model {name[:80]!r} has no version {version[:80]!r}, but {quote(self.versions(name))}")
        return model

    def versions(self, name: str) -> list[str]:
        """Give the versions of a model, oldest first."""
        shelf = self._shelves.get(name)
        return sorted(shelf.versions, key=directory.age) if shelf else []

    def chosen(self, name: str = "", version: str = "") -> list[Model]:
        """Give the models that a name and a version leave; all without a name, all versions without a version.

        Raises:
            Unknown: When there is none.
        """
        if not name:
            return self.models
        return [self.find(name, each) for each in ([version] if version else self.versions(name) or [""])]

    def index(self) -> list[dict[str, str]]:
        """Give name, version, state and reason of every version, those that were unloaded too."""
        served = [
            {"name": model.name, "version": model.version, "state": "READY" if model.ready else "LOADING", "reason": ""}
            for model in self.models
        ]
        away = [
            {"name": name, "version": shelf.current, "state": "UNAVAILABLE", "reason": "unloaded"}
            for name, shelf in self._unloaded.items()
        ]
        return served + away

    async def start(self) -> None:
        """Load every model.

        Raises:
            StartError: When one cannot be served.
        """
        async with self._changing:
            for model in self.models:
                await self._prepare(model)

    async def load(self, name: str) -> Model:
        """Read a model's directory again: load what is new, then exchange it for what was, or change nothing at all.

        Raises:
            Unknown: When there is no such model.
            Invalid: When a version cannot be served; the message says why.
        """
        async with self._changing:
            try:
                if (found := self._scan().get(name)) is None:
                    raise Unknown(f"no model {name[:80]!r} is in the directory")
                shelf = self._shelf(name, found, self._shelves.get(name))
            except (StartError, OSError) as error:
                raise Invalid(str(error)) from None
            if shelf != self._shelves.get(name):
                await self._fill(shelf)
                self._put(name, shelf)
            return shelf.versions[shelf.current]

    async def unload(self, name: str) -> Model:
        """Serve a model no longer, until it is loaded or changes in the directory; gives what was current.

        Raises:
            Unknown: When there is no such model.
        """
        async with self._changing:
            model, shelf = self.find(name), self._shelves[name]
            self._put(name, None)
            self._unloaded[name] = replace(shelf, versions={})
            return model

    async def rollback(self, name: str) -> Model:
        """Make current again what was current before, until the directory wants something new.

        Raises:
            Unknown: When there is no such model.
            Invalid: When no other version was there before.
        """
        async with self._changing:
            self.find(name)
            shelf = self._shelves[name]
            known = self.versions(name)
            lower = known[: known.index(shelf.current)]
            if not (past := [version for version in shelf.before if version in shelf.versions] or lower):
                raise Invalid(f"model {name!r} has no version before {shelf.current!r} to go back to")
            self._put(name, replace(shelf, current=past[-1], before=tuple(past[:-1])))
            return self.find(name)

    async def refresh(self) -> None:
        """Read the whole directory again; what cannot be served is logged and leaves that model as it is."""
        try:
            found = self._scan()
        except (StartError, OSError) as error:
            _log.error("the models stay as they are: %s", error)
            return
        for name in [*found, *(set(self._shelves) - set(found))]:
            try:
                if name not in found:
                    await self.unload(name)
                elif not self._away(name, found[name]):
                    await self.load(name)
            except (Invalid, Unknown) as fault:
                _log.error("model %s stays as it is: %s", name, fault.message)
            except (StartError, OSError) as error:
                _log.error("model %s stays as it is: %s", name, error)
        self._unloaded = {name: shelf for name, shelf in self._unloaded.items() if name in found}

    def _away(self, name: str, found: Mapping[str, Path]) -> bool:
        """Say whether a client unloaded a model, and the directory wants nothing new since."""
        shelf = self._unloaded.get(name)
        return shelf is not None and shelf.wish == directory.wish(self.root, name, found)

    def close(self) -> None:
        """End all threads."""
        for model in self.models:
            model.close(1.0)

    def _scan(self) -> dict[str, dict[str, Path]]:
        """Find names and versions."""
        if not (self.root / "signature.json").exists():
            found = directory.several(self.root)
            if found or self._settings.allow_loading:  # what may be loaded later need not be there yet
                return found
            if self._shelves:
                raise StartError(f"no model is left in {self.root}")
        return directory.one(self.root, self._card)

    def _shelf(self, name: str, found: Mapping[str, Path], old: Shelf | None = None) -> Shelf:
        """Describe a model as its directory has it, with what is loaded already where no file changed."""
        versions = {}
        for version, folder in found.items():
            kept = old.versions.get(version) if old else None
            if kept is None or kept.stamp != stamp(folder):
                card = self._card if folder == self.root else None
                kept = Model(
                    folder, self._settings, self.ledger, name=name, version=version, card=card, observe=self._observe
                )
            versions[version] = kept
        wish = directory.wish(self.root, name, found)
        current = old.current if old and old.wish == wish and old.current in versions else wish[0]
        before = old.before if old else ()
        if old and old.current != current:
            before = (*(version for version in before if version != old.current), old.current)
        return Shelf(versions, current, wish, before)

    async def _fill(self, shelf: Shelf) -> None:
        fresh = [model for model in shelf.versions.values() if not model.ready]
        try:
            for model in fresh:
                await self._prepare(model)
        except BaseException as error:  # cancelled, too: a client may leave while it waits
            for model in fresh:
                model.close(0.0)
            if isinstance(error, StartError):
                raise Invalid(str(error)) from None
            raise

    async def _prepare(self, model: Model) -> None:
        await model.load()
        _log.info("loaded: %s %s in %.2f s", model.name, model.version, model.seconds)

    def _put(self, name: str, shelf: Shelf | None) -> None:
        """Exchange what is served under a name; what nobody can find any more ends with its last request."""
        old = self._shelves.get(name)
        others = {each: kept for each, kept in self._shelves.items() if each != name}
        self._shelves = others if shelf is None else others | {name: shelf}
        self._unloaded.pop(name, None)
        kept = set(shelf.versions.values()) if shelf else set()
        for model in old.versions.values() if old else ():
            if model not in kept:
                model.retire()
        _log.info(
            "serving: %s", ", ".join(f"{each} {model.version}" for each, model in self.current.items()) or "nothing"
        )
