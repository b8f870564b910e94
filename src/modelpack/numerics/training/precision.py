"""In which numbers a student computes (mixed precision: Micikevicius et al., 2018)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

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
    """Give what keeps the gradients of float16 from vanishing; it does nothing for other types."""
    return torch.amp.GradScaler(lesson.device.type, enabled=dtype(lesson) is torch.float16)
