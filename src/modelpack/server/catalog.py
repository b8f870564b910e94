"""The models that are served, by name and version: exchanged while requests run, rolled back.

Without a version a request gets the current one: what the directory wants to be current, or what a client chose. All
workers of a server serve the same (see `changes`), and one that starts later begins with that, not with the directory.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .board import Board
from .changes import Changes
from .directory import Directory, age, wish
from .faults import Fault, Invalid, StartError, Unknown
from .holding import Holding, read
from .model import Model, Stamp, alike
from .signature import quote
from .statistics import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from .batching import Run
    from .holding import Shelf
    from .settings import Settings

_log = logging.getLogger("modelpack.server")


class Catalog:
    """All models of one directory. A change is prepared beside what is served and then takes effect at once.

    Args:
        settings: Limits, and the directory.
        card: What is known about the model of a directory that is one model; None reads its `card.json`.
        observe: Is told of every run of every model.
        ledger: Where models count what they do; one of its own when None.
        changes: Agrees with the other workers; None where there is none.
        changed: Is told when something else is served.

    Raises:
        StartError: When there is no model, or one has no readable signature.
    """

    def __init__(
        self,
        settings: Settings,
        card: Mapping[str, Any] | None,
        observe: Callable[[Run], None] = lambda _run: None,
        ledger: Ledger | None = None,
        *,
        changes: Changes | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self._directory = Directory(settings, card, observe, self.ledger)
        self.root = self._directory.root
        self._changes, self._changed = changes or Changes(Board()), changed
        self._holding = Holding({}, {})
        self._holding = self._recall(self._changes.begin(self._found))

    @property
    def _shelves(self) -> Mapping[str, Shelf]:
        return self._holding.shelves

    @property
    def models(self) -> list[Model]:
        """Every version of every model."""
        return self._holding.models

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
        return sorted(shelf.versions, key=age) if shelf else []

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
            for name, shelf in self._holding.away.items()
        ]
        return served + away

    async def start(self) -> None:
        """Load every model.

        Raises:
            StartError: When one cannot be served.
        """
        async with self._changes.still:
            for model in self.models:
                await self._load(model)

    async def load(self, name: str) -> Model:
        """Read a model's directory again: load what is new, then exchange it for what was, or change nothing at all.

        Raises:
            Unknown: When there is no such model.
            Invalid: When a version cannot be served; the message says why.
        """
        async with self._turn():
            if (found := self._scan().get(name)) is None:
                raise Unknown(f"no model {name[:80]!r} is in the directory")
            await self._renew(name, found)
            return self.find(name)

    async def _renew(self, name: str, found: Mapping[str, Path]) -> None:
        old = self._shelves.get(name)
        if (shelf := self._directory.shelf(name, found, old)) != old:
            await self._become(self._holding.put(name, shelf))

    async def unload(self, name: str) -> Model:
        """Serve a model no longer, until it is loaded or changes in the directory; gives what was current.

        Raises:
            Unknown: When there is no such model.
        """
        async with self._turn():
            model, shelf = self.find(name), self._shelves[name]
            await self._become(self._holding.put(name, away=replace(shelf, versions={})))
            return model

    async def rollback(self, name: str) -> Model:
        """Make current again what was current before, until the directory wants something new.

        Raises:
            Unknown: When there is no such model.
            Invalid: When no other version was there before.
        """
        async with self._turn():
            self.find(name)
            shelf = self._shelves[name]
            known = self.versions(name)
            lower = known[: known.index(shelf.current)]
            if not (past := [version for version in shelf.before if version in shelf.versions] or lower):
                raise Invalid(f"model {name!r} has no version before {shelf.current!r} to go back to")
            await self._become(self._holding.put(name, replace(shelf, current=past[-1], before=tuple(past[:-1]))))
            return self.find(name)

    async def refresh(self) -> None:
        """Read the whole directory again; what cannot be served is logged and leaves that model as it is."""
        try:
            found = self._scan()
        except (StartError, OSError) as error:
            _log.error("the models stay as they are: %s", error)
            return
        for name in {**found, **self._shelves, **self._holding.away}:
            try:
                async with self._turn():
                    await self._follow_directory(name)
            except Fault as fault:
                _log.error("model %s stays as it is: %s", name, fault.message)

    async def _follow_directory(self, name: str) -> None:
        """Serve what there is, unless a client unloaded the model, and the directory wants nothing new since."""
        if found := self._scan().get(name):
            away = self._holding.away.get(name)
            if away is None or away.wish != wish(self.root, name, found):
                await self._renew(name, found)
        elif name in self._shelves or name in self._holding.away:
            await self._become(self._holding.put(name))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be the only one, of all workers, that changes what is served; what cannot be served is no change."""
        async with self._changes.turn(self):
            try:
                yield
            except (StartError, OSError) as error:
                raise Invalid(str(error)) from None

    async def _become(self, following: Holding) -> None:
        """Serve something else in all workers, or change nothing in any."""
        try:
            await self._fill(following)
            await self._changes.ask(following.write())
        except BaseException:  # cancelled, too: a drain ends while a client waits
            self.drop(following)
            raise
        self._changes.decide()
        self.serve(following)
        await self._changes.settle()

    async def follow(self) -> None:
        """Change what other workers change, as long as this one lives.

        Raises:
            StartError: When it cannot.
        """
        await self._changes.follow(self)

    async def prepare(self, text: bytes) -> Holding:
        """Load what another worker serves, beside what is served here.

        Raises:
            StartError: When it cannot be loaded here.
        """
        following = self._recall(text)
        try:
            await self._fill(following)
        except BaseException:
            self.drop(following)
            raise
        return following

    def serve(self, prepared: Holding) -> None:
        """Exchange what is served; what nobody can find any more ends with its last request."""
        before, self._holding = self._holding, prepared
        kept = set(prepared.models)
        for model in before.models:
            if model not in kept:
                model.retire()
        served = ", ".join(f"{each} {model.version}" for each, model in self.current.items())
        _log.info("serving: %s", served or "nothing")
        self._changed()

    def drop(self, prepared: Holding) -> None:
        """End what was loaded to be served, and will not be."""
        for model in set(prepared.models) - set(self.models):
            model.close(0.0)

    def close(self) -> None:
        """End all threads."""
        for model in self.models:
            model.close(1.0)

    def _scan(self) -> dict[str, dict[str, Path]]:
        return self._directory.scan(serving=bool(self._shelves))

    def _found(self) -> bytes:
        """Take what is in the directory, and describe it."""
        shelves = {name: self._directory.shelf(name, found) for name, found in self._scan().items()}
        self._holding = Holding(shelves, {})
        return self._holding.write()

    def _recall(self, text: bytes) -> Holding:
        """Give what a worker described, with what is loaded here already."""
        return read(text, self._same)

    def _same(self, name: str, version: str, folder: Path, files: Stamp) -> Model:
        shelf = self._shelves.get(name)
        kept = shelf.versions.get(version) if shelf else None
        return kept if kept and alike(kept.stamp, files) else self._directory.same(name, version, folder, files)

    async def _fill(self, following: Holding) -> None:
        for model in following.models:
            if not model.ready:
                await self._load(model)

    async def _load(self, model: Model) -> None:
        try:
            await model.load()
        except OSError as error:  # its files go at this moment
            raise StartError(f"{model.name} {model.version} cannot be loaded: {error}") from None
        _log.info("loaded: %s %s in %.2f s", model.name, model.version, model.seconds)
