"""How many channels a processor's kernels compute at once; a rest of fewer takes as long as a whole block.

Sources: onnxruntime's convolutions on blocked channels (``onnxruntime/core/mlas/lib/platform.cpp``: blocks of 16 with
AVX-512, of 8 with AVX, of 16 in builds for NEON), and cuDNN's tensor cores, which take multiples of 8 half-precision
channels (NVIDIA, Deep Learning Performance: Convolutional Layers). CUDA and NEON were not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack import device as devices

if TYPE_CHECKING:
    from collections.abc import Collection


def block(device: str) -> tuple[int, str]:
    """Give the channels of one block on this machine, and for people why.

    Args:
        device: Where the model shall run, ``cpu`` or ``cuda:N``.
    """
    known = devices.machine(device)
    return block_of(known["processor"]["flags"], known["architecture"], device)


def block_of(flags: Collection[str], architecture: str, device: str) -> tuple[int, str]:
    """Give the channels of one block on described hardware, and why.

    Args:
        flags: Instruction sets of the processor, as ``/proc/cpuinfo`` spells them.
        architecture: As `platform.machine` spells it.
        device: ``cpu`` or ``cuda:N``.

    >>> block_of(["avx2", "avx512f"], "x86_64", "cpu")[0], block_of(["avx2"], "x86_64", "cpu")[0]
    (16, 8)
    """
    if device.startswith("cuda"):
        return 8, "tensor cores take channels in eights"
    if architecture.lower() in ("aarch64", "arm64", "armv8l"):
        return 16, "onnxruntime computes channels in blocks of 16 with NEON"
    if "avx512f" in flags:
        return 16, "onnxruntime computes channels in blocks of 16 with AVX-512"
    return 8, "onnxruntime computes channels in blocks of 8 with AVX"
