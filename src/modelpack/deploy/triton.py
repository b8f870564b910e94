"""Triton Inference Server: a repository with one model for its onnxruntime backend.

Source: Triton's model configuration (model_config.proto), "Model Configuration" of its user guide.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from modelpack.artifact import MODEL_FILE, Kind
from modelpack.errors import StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelpack.deploy.facts import Facts, Files, Wish

TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32",
    "float64": "FP64", "string": "STRING",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ROWS = 32
"""Rows in one run, as the server in the image has them."""
_DYNAMIC = b"DynamicQuantizeLinear"


def files(facts: Facts, wish: Wish) -> Files:
    """Give the repository: configuration, and version 1 with the model's files.

    Raises:
        UsageError: For a name that no directory should have.
        StageError: For a type of tensor that Triton does not have.
    """
    name = wish.name or facts.name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a model's directory", where="--name", then="write letters and digits"
        )
    copied = {f"{name}/1/{part}": path for part, path in facts.payload.items()}
    return {f"{name}/config.pbtxt": _config(facts, name), **copied}


def _config(facts: Facts, name: str) -> str:
    batched = _batched(facts)
    lines = [
        "# Put the directory that this one is in where `tritonserver --model-repository=DIR` looks.",
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
    ]
    if facts.prepared:
        lines.insert(
            1,
            f"# Clients send tensors: what makes them of each {' and '.join(sorted(facts.prepared))} is not in Triton.",
        )
    if batched:
        lines += ["# Triton adds this dimension before those below.", f"max_batch_size: {ROWS}"]
    else:
        lines += [
            "# Rows cannot be joined: the inputs and outputs do not all begin with the same dynamic dimension.",
            "max_batch_size: 0",
        ]
    for kind, tensors in (("input", facts.inputs), ("output", facts.outputs)):
        lines += [line for key, spec in tensors.items() for line in _tensor(kind, key, spec, batched=batched)]
    if batched and _mixes(facts):
        lines.append(
            "# No dynamic_batching: this model rounds by the largest value of a run, which may be a stranger's."
        )
    elif batched:
        lines += ["# What arrives while the model runs shares the next run; nobody waits for a timer.",
                  "dynamic_batching { max_queue_delay_microseconds: 0 }"]  # fmt: skip
    threads = facts.bench.threads if facts.bench else 1
    lines += [
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        f"# Threads of one run{', as many as the bench had' if facts.bench else ''}.",
        f'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _batched(facts: Facts) -> bool:
    """Whether every tensor begins with one and the same dynamic dimension."""
    shapes = [spec["shape"] for spec in (*facts.inputs.values(), *facts.outputs.values())]
    first = {shape[0] if shape else 1 for shape in shapes}
    return len(first) == 1 and isinstance(next(iter(first)), str)


def _mixes(facts: Facts) -> bool:
    """Whether the model quantizes by what a run holds; operators stand by name in its file."""
    return _DYNAMIC in facts.payload[MODEL_FILE[Kind.ONNX]].read_bytes()


def _tensor(kind: str, name: str, spec: Mapping[str, Any], *, batched: bool) -> list[str]:
    if spec["dtype"] not in TYPES:
        raise StageError(f"Triton has no type for {spec['dtype']}", where=f"{kind} '{name}'")
    shape = spec["shape"][1:] if batched else spec["shape"]
    sizes = ", ".join(str(size if isinstance(size, int) else -1) for size in shape)
    body = f"name: {_text(name)} data_type: TYPE_{TYPES[spec['dtype']]} dims: [ {sizes or 1} ]"
    reshape = "" if shape else " reshape: { shape: [ ] }"  # a dims without sizes is refused
    return [f"{kind} [ {{ {body}{reshape} }} ]"]


def _text(text: str) -> str:
    """Quote a string as protobuf's text format does."""
    return json.dumps(text, ensure_ascii=False)
