"""Rows of tensors as bytes: their names, what is kept of them, and back."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modelpack.numerics.distillation.shelf import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def number(inputs: Mapping[str, Tensor]) -> int | None:
    """Count rows; None where inputs do not agree on it."""
    counts = {len(value) if value.ndim else None for value in inputs.values()}
    return next(iter(counts)) if len(counts) == 1 else None


def keys(inputs: Mapping[str, Tensor], rows: int) -> list[bytes] | None:
    """Name each row by its bytes in all inputs, by how many are asked at once, and in which precision.

    None where the inputs do not agree on the number of rows.
    """
    count = number(inputs)
    if count is None:
        return None
    device = next(iter(inputs.values())).device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shapes = [[name, str(value.dtype), *value.shape[1:]] for name, value in inputs.items()]
    prefix = hashlib.blake2b(json.dumps([rows, str(precision), shapes]).encode(), digest_size=KEY)
    columns = [flat(value, count).numpy() for value in inputs.values()]
    found = []
    for row in range(count):
        name = prefix.copy()
        for column in columns:
            name.update(column[row])
        found.append(name.digest())
    return found


def flat(value: Tensor, count: int) -> Tensor:
    """View a tensor's rows as bytes on the CPU."""
    rows = value.detach().cpu().reshape(count, math.prod(value.shape[1:])).contiguous()
    return rows.view(torch.uint8)


def encoded(answers: Mapping[str, Tensor], count: int) -> list[bytes] | None:
    """Write each row of the answers as bytes, its layout first; None where an output has not one row for each."""
    if not all(value.ndim and len(value) == count for value in answers.values()):
        return None
    layout = [[name, str(value.dtype).removeprefix("torch."), *value.shape[1:]] for name, value in answers.items()]
    head = json.dumps(layout).encode()
    head = len(head).to_bytes(4, "little") + head
    content = torch.cat([flat(value, count) for value in answers.values()], 1).numpy()
    return [head + row.tobytes() for row in content]


def decoded(items: Sequence[memoryview], device: torch.device) -> dict[str, Tensor] | None:
    """Read rows that `encoded` wrote as one batch; None where their layouts differ."""
    start = 4 + int.from_bytes(items[0][:4], "little")
    head = bytes(items[0][:start])
    if any(item[:start] != head or len(item) != len(items[0]) for item in items):
        return None
    content = torch.from_numpy(np.frombuffer(bytearray().join(items), np.uint8).reshape(len(items), -1))
    answers: dict[str, Tensor] = {}
    for name, kind, *shape in json.loads(head[4:]):
        dtype = getattr(torch, kind)
        end = start + math.prod(shape) * dtype.itemsize
        # A copy of its own, for a view of another type must begin, and step, where such a value may.
        part = content[:, start:end].clone(memory_format=torch.contiguous_format).view(-1)
        answers[name] = part.view(dtype).reshape(len(items), *shape).to(device)
        start = end
    return answers
