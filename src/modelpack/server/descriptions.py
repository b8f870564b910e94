"""What a model is and has done, in the words of the Open Inference Protocol v2 and of Triton's extensions of it.

Sources: `inference_rest.md`; Triton's `extension_statistics.md` and `extension_model_configuration.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import VERSION
from .open_inference import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model import Model
    from .signature import Tensor

_STEPS = ("compute_input", "compute_infer", "compute_output")
PLATFORM = "onnxruntime_onnx"
_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def server() -> dict[str, Any]:
    """Describe this server."""
    return {"name": "modelpack", "version": VERSION, "extensions": list(_EXTENSIONS)}


def metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """Describe tensors; a dimension with a name has the size -1."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": _tensors(model.signature.inputs),
        "outputs": _tensors(model.signature.outputs),
    }


def _tensors(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": NAMES[each.dtype], "shape": _sizes(each)} for name, each in tensors.items()]


def _sizes(tensor: Tensor) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in tensor.shape]


def _type(tensor: Tensor) -> str:
    return "TYPE_STRING" if tensor.textual else f"TYPE_{NAMES[tensor.dtype]}"


def configuration(model: Model, max_rows: int) -> dict[str, Any]:
    """Describe a model as Triton's configuration would; its dimensions leave out the rows where those are free."""
    rows = int(model.signature.batches)
    engine = model.engine

    def listed(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return [{"name": name, "data_type": _type(each), "dims": _sizes(each)[rows:]} for name, each in tensors.items()]

    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": max_rows if rows else 0,
        "input": listed(model.signature.inputs),
        "output": listed(model.signature.outputs),
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": 1}],
        **({"dynamic_batching": {"max_queue_delay_microseconds": 0}} if engine and engine.batch > 1 else {}),
    }


def statistics(model: Model, totals: Mapping[str, list[float]]) -> dict[str, Any]:
    """Tell what a model has done since its files were loaded first, of the totals of all workers."""
    known = model.statistics.figures(totals)
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": known.last,
        "inference_count": known.inferences,
        "execution_count": known.executions,
        "inference_stats": {
            "success": _tally(known.success),
            "fail": _tally(known.fail),
            "queue": _tally(known.queue),
            **_steps(known.steps),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [{"batch_size": rows, **_steps(steps)} for rows, steps in known.batches.items()],
    }


def _steps(steps: Sequence[int]) -> dict[str, Any]:
    count, *spent = steps
    return {name: _tally((count, ns)) for name, ns in zip(_STEPS, spent, strict=True)}


def _tally(tally: Sequence[int]) -> dict[str, int]:
    count, ns = tally
    return {"count": count, "ns": ns}
