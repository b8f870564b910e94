"""Kernels made for one student by torch.compile (Ansel et al., 2024)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextlib.contextmanager
def compiled(module: nn.Module) -> Iterator[None]:
    """Compute a module with kernels of its own for as long as this is open; its parameters and names stay."""

    # Not `module.compile()`: it leaves out what torch itself wrote, so that a plain `Sequential` stays as it is.
    def called(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # noqa: SLF001 - a call comes to that

    module._compiled_call_impl = torch.compile(called)  # noqa: SLF001 - where torch looks for it
    try:
        yield
    finally:
        module._compiled_call_impl = None  # noqa: SLF001
