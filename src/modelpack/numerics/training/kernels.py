"""Kernels made for one student by torch.compile (Ansel et al., 2024)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextlib.contextmanager
def compiled(module: nn.Module) -> Iterator[None]:
    """Compute a module with kernels of its own for as long as this is open; its parameters and names stay."""
    module.compile()
    try:
        yield
    finally:
        module._compiled_call_impl = None  # noqa: SLF001 - torch has no other way back
