"""A student, and all that changes its weights: one step of the optimizer at a time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics import models
from modelpack.numerics.training import memory, optimizer, precision, statistics, tensors
from modelpack.numerics.training.averaging import Average
from modelpack.numerics.training.batches import split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelpack.numerics.training.batches import Arrays
    from modelpack.numerics.training.lesson import Lesson
    from modelpack.numerics.training.sharing import Share
    from modelpack.numerics.training.spread import Pupil


class Learner:
    """A student with its optimizer.

    Attributes:
        student: In training mode while it learns.
    """

    def __init__(self, pupil: Pupil, lesson: Lesson) -> None:
        self.student, self._pupil, self._lesson = pupil.student, pupil, lesson
        self._learned = lesson.objective.learned
        self._optimizer = optimizer.build(self.student, self._learned, lesson.schedule)
        self._scaler = precision.scaler(lesson)
        average = lesson.schedule.average
        self._average = Average(self.student, average) if average else None
        self._updates = 0

    def learn(self, batches: Sequence[tuple[Arrays, Share]], rate: float) -> dict[str, Tensor]:
        """Take one step of the optimizer, whose gradient is the mean over the rows of one or more batches.

        Args:
            batches: Rows to learn from, and what this process's share of each counts.
            rate: The learning rate.

        Returns:
            The parts of the loss, each added up over the rows, on the device: reading one waits for it.

        Raises:
            StageError: When the student cannot be trained, or batches of this size do not fit in memory.
        """
        optimizer.pace(self._optimizer, rate)
        self.forget()
        total = sum(share.of for _, share in batches)
        sums: dict[str, Tensor] = {}
        for place, (batch, share) in enumerate(batches, 1):
            exchange = contextlib.nullcontext() if place == len(batches) else self._pupil.adding()
            lone, ours = statistics.explained(share.of), models.blamed("the model cannot be trained")
            with exchange, lone, ours, memory.explained(self, batch, share):
                parts = self.backward(batch, share, total)
            for name, value in parts.items():
                added = value.detach() * share.of
                sums[name] = sums[name] + added if name in sums else added
        with memory.enough():
            self._update()
        return sums

    def backward(self, batch: Arrays, share: Share, total: int) -> dict[str, Tensor]:
        """Add the gradients of a batch's loss, as its part of so many rows, to those that are there."""
        inputs, beside = split(batch, self._lesson.device, shared=False)
        with precision.autocast(self._lesson):
            parts = self._pupil.losses(inputs, beside, share)
        loss = parts["loss"] if share.of == total else parts["loss"] * (share.of / total)
        torch.autograd.backward(self._scaler.scale(loss))
        return parts

    def forget(self) -> None:
        """Let the gradients go, and with them their memory."""
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        clip = self._lesson.schedule.clip
        self._scaler.unscale_(self._optimizer)
        if clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._updates += 1
        if self._lesson.constraint is not None:
            self._lesson.constraint(self.student)
        if self._average is not None:
            self._average.follow(self._updates)

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Give the student the weights that count, for as long as this is open: their average, where that is kept."""
        return self._average.shown() if self._average is not None else contextlib.nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Collect all that the next step depends on but the student's weights, as copies on the CPU."""
        found = {f"optimizer/{name}": value for name, value in optimizer.state(self._optimizer, self._names()).items()}
        for part, values in self._beside().items():
            found |= {f"{part}/{name}": tensors.copy(value) for name, value in values.items()}
        scale = self._scaler.state_dict()
        found |= {f"scaler/{name}": torch.tensor(value, dtype=torch.float64) for name, value in scale.items()}
        return found | {"updates": torch.tensor(self._updates)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` collected."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        optimizer.restore(self._optimizer, self._names(), parts.get("optimizer", {}))
        for part, values in self._beside().items():
            tensors.fill(values, parts[part])
        kinds = {name: type(value) for name, value in self._scaler.state_dict().items()}
        if kinds:
            self._scaler.load_state_dict({name: kind(parts["scaler"][name].item()) for name, kind in kinds.items()})
        self._updates = int(state["updates"])

    def _beside(self) -> dict[str, dict[str, Tensor]]:
        """Give the values that training keeps beside the student's."""
        found = {}
        if self._learned is not None:
            found["learned"] = dict(tensors.named(self._learned))
        if self._average is not None:
            found["average"] = self._average.values
        return found

    def _names(self) -> dict[Tensor, str]:
        names: dict[Tensor, str] = {value: name for name, value in self.student.named_parameters()}
        if self._learned is not None:
            names |= {value: f" learned.{name}" for name, value in self._learned.named_parameters()}
        return names
