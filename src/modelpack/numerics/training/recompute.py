"""Activations computed again when gradients need them, instead of being kept (Chen et al., 2016, arXiv 1604.06174)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from modelpack.errors import StageError
from modelpack.numerics.training.depth import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Keep only what goes into a module's repeated blocks, for as long as this is open; gradients stay the same.

    Raises:
        StageError: When the module repeats no block.
    """
    found = blocks(module)
    if not found:
        raise StageError(
            "the model has no repeated blocks whose activations could be computed again",
            then="leave out `checkpoint_activations`, and use smaller batches with `accumulate`",
        )
    for block in found.values():
        block.forward = _again(block.forward, block)
    try:
        yield
    finally:
        for block in found.values():
            del block.forward


def _again(forward: Callable[..., Any], block: nn.Module) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _quiet(block)), **kwargs
        )

    return called


@contextlib.contextmanager
def _quiet(block: nn.Module) -> Iterator[None]:
    """Let batch norms take no statistics: those of these rows were taken the first time."""
    norms = [
        layer
        for layer in block.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.track_running_stats  # noqa: SLF001
    ]
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True
