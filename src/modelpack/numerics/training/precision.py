"""In which numbers a student computes (mixed precision: Micikevicius et al., 2018)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError
from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from modelpack.numerics.training.lesson import Lesson


def dtype(lesson: Lesson) -> torch.dtype:
    """Choose the element type of the forward pass."""
    precision = lesson.schedule.precision
    if precision != "auto":
        chosen: torch.dtype = getattr(torch, precision)
        return chosen
    if lesson.device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(lesson: Lesson) -> contextlib.AbstractContextManager[object]:
    """Compute in the lesson's element type what torch holds to be safe in it."""
    chosen = dtype(lesson)
    if chosen is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(lesson.device.type, dtype=chosen)


def scaler(lesson: Lesson) -> torch.amp.GradScaler:
    """Give what keeps the gradients of float16 from vanishing; it does nothing for other types.

    Raises:
        StageError: For float16 where each process has a part of the gradients and cannot see whether all are finite.
    """
    scaled = dtype(lesson) is torch.float16
    if scaled and lesson.schedule.parallel == "fsdp" and crew.size() > 1:
        raise StageError("parallel fsdp cannot train in float16", then="set precision: bfloat16, or parallel: ddp")
    return torch.amp.GradScaler(lesson.device.type, enabled=scaled)
