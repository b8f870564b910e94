"""Names → stages and data sources, through entry points; listing names imports nothing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from modelpack.data import Source
from modelpack.errors import MissingError, UsageError, did_you_mean
from modelpack.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

P = TypeVar("P", Stage[Any], Source[Any])


@dataclass(frozen=True)
class Plugins(Generic[P]):
    """The plugins of one entry-point group.

    Attributes:
        group: The entry-point group.
        type: What every entry must be.
        entries: Name → entry point.
    """

    group: str
    type: type[P]
    entries: dict[str, EntryPoint]

    def names(self) -> list[str]:
        """List the plugins' names."""
        return sorted(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str) -> P:
        """Import one plugin.

        Raises:
            UsageError: When no distribution offers the name, or offers something else under it.
            MissingError: When importing it fails.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise UsageError(
                f"no {self.type.__name__.lower()} is named '{name}'", then=did_you_mean(name, self.entries)
            )
        owner = entry.dist.name if entry.dist else "unknown"
        try:
            plugin = entry.load()
        except Exception as error:
            raise MissingError(
                f"the {self.type.__name__.lower()} '{name}' cannot be imported: {type(error).__name__}: {error}",
                where=f"{entry.value} (from {owner})",
            ) from error
        if not isinstance(plugin, self.type) or plugin.name != name:
            raise UsageError(
                f"the entry point '{name}' must be a {self.type.__name__} of that name",
                where=f"{entry.value} ({owner})",
            )
        return plugin


def discover(group: str, kind: type[P], found: Iterable[EntryPoint]) -> Plugins[P]:
    """Collect entry points by name.

    Raises:
        UsageError: When two distributions offer the same name; the message names both.
    """
    entries: dict[str, EntryPoint] = {}
    for entry in found:
        first = entries.get(entry.name)
        if first is not None and first.value != entry.value:
            owners = " and ".join(sorted(item.dist.name if item.dist else "unknown" for item in (first, entry)))
            raise UsageError(
                f"two distributions offer a {kind.__name__.lower()} named '{entry.name}': {owners}",
                then="uninstall one of them",
            )
        entries[entry.name] = entry
    return Plugins(group, kind, entries)


@functools.cache
def stages() -> Plugins[Stage[Any]]:
    """Give the installed stages."""
    return discover("modelpack.stages", Stage, entry_points(group="modelpack.stages"))


@functools.cache
def sources() -> Plugins[Source[Any]]:
    """Give the installed data sources."""
    return discover("modelpack.sources", Source, entry_points(group="modelpack.sources"))
