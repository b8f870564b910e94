"""The protocols that the server speaks, one file each: `protocol(settings)` in it gives its table.

A protocol turns requests into tensors for `Service.infer` and answers into its own words; a new file is a new protocol.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..router import Protocol
    from ..settings import Settings


def every(settings: Settings) -> list[Protocol]:
    """Give the protocols of all files, in the order of their names."""
    names = sorted(module.name for module in iter_modules(__path__))
    return [import_module(f".{name}", __name__).protocol(settings) for name in names]
