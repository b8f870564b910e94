"""Layers that multiply by weights: which of them a user names, and which hold their weights for themselves."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from torch import nn

from modelpack.errors import StageError, did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Iterable


def named(module: nn.Module, patterns: Iterable[str], setting: str) -> set[str]:
    """Find the modules that glob patterns name, with all that is in them.

    Args:
        module: The model.
        patterns: Of module paths.
        setting: Where they come from.

    Raises:
        StageError: When a pattern names none.
    """
    paths = [path for path, _ in module.named_modules() if path]
    found: set[str] = set()
    for pattern in patterns:
        hits = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not hits:
            then = did_you_mean(pattern, paths) or f"there are {listed(paths, 12)}"
            raise StageError(f"{setting}: no module matches '{pattern}'", then=then)
        found |= {path for path in paths for hit in hits if path == hit or path.startswith(f"{hit}.")}
    return found


def shared(module: nn.Module) -> set[int]:
    """Give the identities of weights that are embeddings."""
    return {id(item.weight) for item in module.modules() if isinstance(item, (nn.Embedding, nn.EmbeddingBag))}


def foreign(layer: nn.Module, embeddings: set[int]) -> str:
    """Say why a layer's weights cannot be changed for its sake alone; empty where they can."""
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        return "its weight is computed from other tensors (such as by weight_norm)"
    return "it shares its weights with an embedding" if id(layer.weight) in embeddings else ""
