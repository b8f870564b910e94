"""Which device work runs on: resolved once, before anything runs, without loading torch."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Literal

from modelpack.errors import MissingError, UsageError
from modelpack.usercode import minor_version

CHOICES = "auto, cpu, cuda or cuda:N"

Hardware = Literal["vnni", "amx", "avx2", "neon", "cuda"]
"""A kind of hardware that a quantized model is written for."""

Target = Literal["auto", Hardware]
"""A recipe's choice of hardware; ``auto`` is the machine that the model is made on."""


@functools.cache
def cuda_devices() -> int:
    """Count the CUDA devices that the driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def cuda_lacks() -> list[str]:
    """List what is missing for CUDA on this machine; empty when it can be used."""
    lacks = []
    if not cuda_devices():
        lacks.append("an NVIDIA GPU with its driver")
    try:
        if "+cpu" in importlib.metadata.version("torch"):
            lacks.append("a CUDA build of torch (this one is a CPU build)")
    except importlib.metadata.PackageNotFoundError:
        lacks.append("torch")
    if minor_version("onnxruntime-gpu") == "absent":
        lacks.append("onnxruntime-gpu in place of onnxruntime (pip install 'modelpack[cuda]')")
    return lacks


def resolve(asked: str) -> str:
    """Turn what the user asked for into ``cpu`` or ``cuda:N``.

    Args:
        asked: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: For anything else.
        MissingError: When CUDA was asked for and cannot be used; never a silent CPU run.
    """
    if asked == "auto":
        return "cpu" if cuda_lacks() else "cuda:0"
    kind, _, number = asked.partition(":")
    if kind == "cpu" and not number:
        return "cpu"
    if kind != "cuda" or not (number or "0").isdigit() or asked.endswith(":"):
        raise UsageError(f"no device is called '{asked}'", then=f"use {CHOICES}")
    lacks = cuda_lacks()
    if lacks:
        raise MissingError(
            f"CUDA cannot be used here; missing: {'; '.join(lacks)}", then="bring them, or use --device cpu"
        )
    index = int(number or 0)
    if index >= cuda_devices():
        raise MissingError(f"there is no CUDA device {index}: this machine has {cuda_devices()}")
    return f"cuda:{index}"


@functools.cache
def processor() -> dict[str, Any]:
    """Describe the processor: its name and those instruction sets that decide how fast INT8 is."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"name": platform.processor() or platform.machine(), "flags": []}
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    told = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    return {"name": facts.get("model name", platform.machine()), "flags": [flag for flag in told if flag in flags]}


def machine(device: str) -> dict[str, Any]:
    """Identify the machine that a measurement was made on: processor, cores, device and runtime versions."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "system": platform.system(),
        "architecture": platform.machine(),
        "versions": {name: minor_version(name) for name in ("torch", "onnxruntime", "onnxruntime-gpu")},
    }
