"""Which integers a processor multiplies fastest, and what it gets wrong.

What onnxruntime does with them, from its sources (github.com/microsoft/onnxruntime, 2026) and, for x86, from
measurements with release 1.31; the others were not run:

* x86: ``onnxruntime/core/mlas/lib/platform.cpp`` has fast kernels for unsigned activations with signed weights (U8S8)
  alone; signed activations (S8S8) cost most of the speed. Without VNNI two products are added in 16 bits (see
  `saturation.pairs`). Convolutions read their input in place where its channels are a multiple of four
  (``onnxruntime/core/mlas/lib/convsym.cpp``), else they copy it first.
* NEON: the same file has kernels for both; signed bytes are what the instructions multiply, unsigned ones are shifted.
* CUDA: no int8 kernel is fused from QDQ by onnxruntime's own provider, which computes in floating point
  (``onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc``); TensorRT's
  takes signed activations whose zero point is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelpack import device as devices
from modelpack.numerics import grid

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from modelpack.device import Hardware, Target
    from modelpack.numerics.grid import Grid, Integer


@dataclass(frozen=True)
class Profile:
    """A kind of hardware.

    Attributes:
        name: What it is called in recipes.
        integer: Type of activations.
        centred: Whether the zero point of activations must be zero.
        saturates: Whether sums of two products of bytes are cut off at 16 bits.
        channels: A convolution's input channels should be a multiple of this.
        reason: Why activations take this type, for people.
    """

    name: Hardware
    integer: Integer
    centred: bool
    saturates: bool
    channels: int
    reason: str

    @property
    def integers(self) -> str:
        """What a result depends on: types of activations and weights, and how products are added.

        >>> PROFILES["vnni"].integers == PROFILES["amx"].integers, PROFILES["avx2"].integers
        (True, 'U8S8, summed in 16 bits')
        """
        types = "S8S8" if np.dtype(self.integer).kind == "i" else "U8S8"
        return f"{types}{' around zero' * self.centred}{', summed in 16 bits' * self.saturates}"

    def grid(self, low: float, high: float, *, wide: bool = False) -> Grid:
        """Give the grid of an activation between two values, in 16 bits when `wide`.

        Raises:
            ValueError: When a bound is not finite.
        """
        signed = np.dtype(self.integer).kind == "i"
        wider: Integer = np.int16 if signed else np.uint16
        integer = wider if wide else self.integer
        return grid.symmetric(low, high, integer) if self.centred else grid.asymmetric(low, high, integer)


_X86 = "unsigned activations with signed weights (U8S8): the pair that onnxruntime's x86 kernels multiply fastest"
_SIGNED = "signed activations and weights (S8S8)"

PROFILES: Mapping[Hardware, Profile] = {
    "amx": Profile("amx", np.uint8, False, False, 4, _X86),
    "vnni": Profile("vnni", np.uint8, False, False, 4, _X86),
    "avx2": Profile("avx2", np.uint8, False, True, 4, f"{_X86}; without VNNI it adds pairs of products in 16 bits"),
    "neon": Profile("neon", np.int8, False, False, 1, f"{_SIGNED}: what NEON multiplies; not tried on one"),
    "cuda": Profile(
        "cuda", np.int8, True, False, 1,
        f"{_SIGNED} around zero, as TensorRT wants them; onnxruntime's CUDA provider computes them in floating point; "
        "not tried on a GPU",
    ),
}  # fmt: skip
"""Name → what follows from it."""


def profile(target: Target, device: str) -> Profile:
    """Give a named profile, or that of this machine for ``auto``.

    Args:
        target: The name.
        device: Where the model shall run, ``cpu`` or ``cuda:N``; only for ``auto``.
    """
    if target != "auto":
        return PROFILES[target]
    known = devices.machine(device)
    return PROFILES[detected(known["processor"]["flags"], known["architecture"], device)]


def detected(flags: Collection[str], architecture: str, device: str) -> Hardware:
    """Name the hardware behind a device.

    Args:
        flags: Instruction sets of the processor, as ``/proc/cpuinfo`` spells them.
        architecture: As `platform.machine` spells it.
        device: ``cpu`` or ``cuda:N``.

    >>> detected(["avx2", "avx512f", "avx512_vnni"], "x86_64", "cpu")
    'vnni'
    >>> detected([], "aarch64", "cpu"), detected(["avx2"], "x86_64", "cuda:0"), detected([], "x86_64", "cpu")
    ('neon', 'cuda', 'avx2')
    """
    if device.startswith("cuda"):
        return "cuda"
    if architecture.lower() in ("aarch64", "arm64", "armv8l"):
        return "neon"
    if "amx_int8" in flags:
        return "amx"
    return "vnni" if {"avx512_vnni", "avx_vnni"} & set(flags) else "avx2"
