"""Activations computed again when gradients need them, instead of being kept (Chen et al., 2016, arXiv 1604.06174)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint

from modelpack.errors import StageError
from modelpack.numerics.training.depth import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


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
    """Let what a block counts, such as the statistics of batch norms, be as the first time left it."""
    counted = [(part, dict(part.named_buffers(recurse=False))) for part in block.modules()]
    for part, buffers in counted:
        for name, tensor in buffers.items():
            setattr(part, name, tensor.clone())
    try:
        yield
    finally:
        for part, buffers in counted:
            for name, tensor in buffers.items():
                setattr(part, name, tensor)
