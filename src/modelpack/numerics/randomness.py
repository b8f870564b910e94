"""Random numbers that follow from a seed and leave the rest of the process alone."""

from __future__ import annotations

import contextlib
import random
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSTEADY = re.compile(
    r"(.+?) (?:does not have a deterministic implementation|defaults to a non-deterministic algorithm)"
)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed every global generator that user code may draw from, and restore them all afterwards.

    Args:
        seed: Any non-negative integer.
        device: The accelerator whose generator is seeded as well; only the CPU's when None.
    """
    accelerators = [device] if device is not None and device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=accelerators):
        try:
            reseed(seed, device)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Seed every global generator again; only inside `seeded`, which restores them."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def chained(seed: int, *parts: int) -> int:
    """Derive an independent seed from a seed and the position of the draw, such as an epoch's number."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def repeatable(device: torch.device, *, cudnn: bool = True) -> Iterator[set[str]]:
    """Let a device compute so that the same numbers give the same bits again; gives the operators met that cannot.

    Several threads of a GPU that add to one number do so in any order, unless a slower way is asked for.

    Args:
        device: What is computed on; a processor needs no asking.
        cudnn: Whether cuDNN may be used.
    """
    unsteady: set[str] = set()
    with (
        torch.backends.cudnn.flags(enabled=cudnn, benchmark=False, deterministic=True),
        contextlib.ExitStack() as open_,
    ):
        if device.type == "cuda":
            open_.enter_context(_orderly())
            open_.enter_context(_noticed(unsteady))
        yield unsteady


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    more: Any = torch.utils.deterministic
    filled = more.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    more.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        more.fill_uninitialized_memory = filled


@contextlib.contextmanager
def _noticed(unsteady: set[str]) -> Iterator[None]:
    """Collect the operators that torch warns of, and pass all other warnings on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=_UNSTEADY.pattern)
        show = warnings.showwarning

        def notice(message: Warning | str, *rest: Any, **more: Any) -> None:
            found = _UNSTEADY.match(str(message))
            if found:
                unsteady.add(found[1])
            else:
                show(message, *rest, **more)

        warnings.showwarning = notice
        yield
