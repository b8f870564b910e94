"""Multiply-accumulates, counted where torch dispatches: subclasses of layers and functional calls count as well.

Source: `torch.utils.flop_counter.FlopCounterMode`, which counts two operations per multiply-accumulate and knows
convolutions and matrix products; normalisation, activations and other elementwise work count as nothing.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelpack.numerics.calling import call

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from modelpack.tensors import TensorSpec


def count(module: nn.Module, feed: Mapping[str, Tensor]) -> int:
    """Count the multiply-accumulates of one forward pass over `feed`."""
    return count_by_module(module, feed)[""]


def per_row(module: nn.Module, feed: Mapping[str, Tensor], inputs: Mapping[str, TensorSpec]) -> int:
    """Count the multiply-accumulates of one row of `feed`; of the whole of it where the number of rows is fixed."""
    sizes = [len(feed[name]) for name, spec in inputs.items() if 0 in spec.dynamic]
    return count(module, feed) // (sizes[0] if sizes else 1)


def count_by_module(module: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the multiply-accumulates of one forward pass, by module path; the whole module has the path ``""``."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), _plain_operators(module):
        call(module, feed)
    totals = {
        name.partition(".")[2]: sum(by_operator.values()) // 2
        for name, by_operator in counter.get_flop_counts().items()
        if name != "Global"
    }
    return {**totals, "": counter.get_total_flops() // 2}


@contextlib.contextmanager
def _plain_operators(module: nn.Module) -> Iterator[None]:
    """Switch off the fused operators that the counter cannot look into."""
    # Without oneDNN convolutions are many times slower, so it is switched off only where it hides recurrent layers.
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            # Setting any oneDNN flag sets all of them, and one of them speaks of Intel GPUs.
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.backends.mkldnn.flags(enabled=not recurrent and torch.backends.mkldnn.enabled),
                torch.backends.cudnn.flags(enabled=False),
            ):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
