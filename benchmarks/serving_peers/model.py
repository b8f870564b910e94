"""The model that every peer serves, opened and asked in the same way: one onnxruntime session with one thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it while it is imported
import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Model:
    """The session over the file that the environment's `MODEL` names."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self._shape = self._session.get_inputs()[0].shape[1:]

    @staticmethod
    def rows(instances: list[Any]) -> NDArray[np.float32]:
        """Read rows as nested lists of numbers."""
        return np.asarray(instances, np.float32)

    def raw(self, body: bytes) -> NDArray[np.float32]:
        """Read rows as bytes."""
        return np.frombuffer(body, np.float32).reshape(-1, *self._shape)

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the model on rows."""
        return self._session.run(None, {"x": rows})[0]
