"""How much memory this process has used at most, on the host and on a CUDA device."""

from __future__ import annotations

import ctypes
import importlib
import re
import resource
import sys
from pathlib import Path
from typing import Any

from modelpack.errors import MissingError


def resident() -> int:
    """Give the bytes of this process that are in memory now."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """Give the most bytes that this process ever had in memory.

    `getrusage` is the second choice: on Linux its figure survives `exec`, so that a child of a large process starts
    with its parent's peak.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def nvml() -> Any:
    """Give NVIDIA's management library, ready to ask.

    Raises:
        MissingError: When its Python package or the driver is absent.
    """
    try:
        library = importlib.import_module("pynvml")
    except ImportError as error:
        raise MissingError(
            "device memory is measured by NVML, and the package nvidia-ml-py is not installed",
            then="pip install 'modelpack[cuda]', or use --device cpu",
        ) from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise MissingError(
            f"NVML does not answer: {error}", then="install NVIDIA's driver, or use --device cpu"
        ) from error
    return library


def device_used(device: str) -> int:
    """Give the bytes in use on ``cuda:N``, by all processes.

    The driver and NVML number devices differently (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER): the address on the bus
    is what both know.
    """
    library, driver = nvml(), ctypes.CDLL("libcuda.so.1")
    address = ctypes.create_string_buffer(32)
    if driver.cuInit(0) or driver.cuDeviceGetPCIBusId(address, len(address), int(device.partition(":")[2] or 0)):
        raise MissingError(f"the driver knows no device '{device}'")
    return int(library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByPciBusId(address.value)).used)
