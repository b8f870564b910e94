"""The model itself: an onnxruntime session that agrees with its signature, and runs."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from .cpus import available, quota
from .faults import Invalid, StartError
from .independence import entangling, independent, repeating
from .signature import DTYPES, Signature, Tensor, quote

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it while it is imported
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION: str = onnxruntime.__version__
_GUESSES = ((1, 1), (1, 16), (1, 64), (1, 224), (2, 2), (16, 16))  # rows, and every other named dimension
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_log = logging.getLogger("modelpack.server")


class Engine:
    """One session; `run` may be called from several threads at once.

    Args:
        path: The ONNX file.
        signature: What the model must take and give.
        threads: Threads of one inference; None takes what this process may use.
        rows: The most rows in one run, of models whose rows are independent of each other.
        device: ``cpu`` or ``cuda``.

    Raises:
        StartError: When the file cannot be loaded, is not what its signature says, or would not run on the device.
    """

    def __init__(
        self, path: Path, signature: Signature, threads: int | None = None, rows: int = 1, device: str = "cpu"
    ) -> None:
        self.signature = signature
        self.threads = threads or available()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures come back as exceptions; what is logged twice is noise
        if quota() is not None:  # a spinning thread burns the quota that the working ones need
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = _session(path, options, device)
        _compare("input", signature.inputs, self.session.get_inputs())
        _compare("output", signature.outputs, self.session.get_outputs())
        self.names = list(signature.outputs)
        self.steady = not repeating(path)
        self.batch = rows if signature.batches and not entangling(path) else 1

    def run(self, feed: Mapping[str, np.ndarray], options: Any = None) -> dict[str, np.ndarray]:
        """Run the model on checked inputs, in slices where it takes exactly one row, or no more than a batch.

        Raises:
            Invalid: When the model refuses these values, such as an index beyond its table.
        """
        step = 1 if self.signature.splits else self.batch if self.batch > 1 else sys.maxsize
        first = next(iter(feed.values()))
        rows = first.shape[0] if first.ndim else 1
        try:
            if rows <= step:
                return dict(zip(self.names, self.session.run(self.names, feed, options), strict=True))
            slices = [{name: array[at : at + step] for name, array in feed.items()} for at in range(0, rows, step)]
            each = [self.session.run(self.names, part, options) for part in slices]
        except InvalidArgument as error:
            raise Invalid(f"the model refuses these values: {_reason(error)}") from None
        return {name: np.concatenate(parts) for name, parts in zip(self.names, zip(*each, strict=True), strict=True)}

    def warm_up(self) -> None:
        """Run twice on the smallest inputs, so that the first client finds memory allocated and kernels chosen.

        Raises:
            StartError: When the model cannot run at all.
        """
        free = any(isinstance(size, str) for tensor in self.signature.inputs.values() for size in tensor.shape[1:])
        reason = ""
        for guess in _GUESSES:
            feed = {name: _smallest(tensor, *guess) for name, tensor in self.signature.inputs.items()}
            try:
                self.run(feed)
                self.run(feed)
            except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the reason is kept
                reason = _reason(error)
            else:
                # Numbers in a loop may say how often it runs: then only the smallest are tried.
                ranges = {name: tensor.range for name, tensor in self.signature.inputs.items() if self.steady}
                if self.batch > 1 and not independent(self.run, feed, ranges):
                    self.batch = 1
                    _log.info("requests do not share runs: rows of this model may depend on each other")
                return
        if not free:
            raise StartError(f"the model does not run: {reason}")
        _log.warning("no warm-up: the model runs on none of the sizes tried: %s", reason)


def _session(path: Path, options: Any, device: str) -> Any:
    """Load a model onto a device; onnxruntime alone would take the processor where it finds no other device.

    Raises:
        StartError: When it cannot be loaded, or not there.
    """
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise StartError(f"this onnxruntime knows no {device}: build the image with device: {device}")
    if device == "cuda":
        onnxruntime.preload_dlls(directory="")  # CUDA's libraries lie beside onnxruntime, where no linker looks
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no other parent
        raise StartError(f"{path} cannot be loaded: {_reason(error)}") from None
    if session.get_providers()[0] != provider:
        raise StartError(
            f"onnxruntime does not run on {device} here and would take the processor: it needs a graphics card with "
            "a driver for its CUDA, and docker run --gpus all"
        )
    return session


def stoppable() -> Any:
    """Give options for one run; setting their `terminate` ends it from another thread."""
    return onnxruntime.RunOptions()


def _smallest(tensor: Tensor, rows: int, size: int) -> np.ndarray:
    value = 0 if tensor.range is None else min(max(0, tensor.range[0]), tensor.range[1])
    free = [wanted if isinstance(wanted, int) else size if axis else rows for axis, wanted in enumerate(tensor.shape)]
    return np.full(free, value, tensor.dtype)


def _compare(role: str, tensors: Mapping[str, Tensor], nodes: list[Any]) -> None:
    found = {node.name: node for node in nodes}
    missing = set(found) - set(tensors) if role == "input" else set()
    wrong = sorted((set(tensors) - set(found)) | missing)
    if wrong:
        raise StartError(
            f"the signature and the model disagree on {quote(wrong)}: the model's {role}s are {quote(found)}"
        )
    for name, tensor in tensors.items():
        node = found[name]
        if node.type != DTYPES[tensor.dtype]:
            raise StartError(f"{role} {name!r} is {tensor.dtype} in the signature but {node.type} in the model")
        shape = list(node.shape or [])  # None: the model does not say
        fits = len(shape) == len(tensor.shape) and all(
            have == want or not isinstance(have, int) or isinstance(want, str)
            for have, want in zip(shape, tensor.shape, strict=True)
        )
        if not fits and (shape or role == "input"):
            raise StartError(f"{role} {name!r} has shape {tensor.wanted} in the signature but {shape} in the model")


def _reason(error: Exception) -> str:
    """Keep what onnxruntime says about the fault, without its source paths and its code's own names."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).rpartition("Status Message: ")[2]
    return re.sub(r"\S*/onnxruntime_src/\S+(?: [\w:<>]+\([^)]*\))?\s*", "", text)[:300] or type(error).__name__
