"""Random numbers that follow from a seed and leave the rest of the process alone."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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
