"""MLflow as its documentation says: save the ONNX model; `mlflow models serve` does the rest."""

from __future__ import annotations

import os
import sys

import mlflow
import onnx

if __name__ == "__main__":
    mlflow.onnx.save_model(
        onnx.load(os.environ["MODEL"]),
        sys.argv[1],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1, "execution_mode": "sequential"},
        pip_requirements=[],
    )
