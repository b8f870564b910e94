"""What training leaves behind while it runs, so that a killed run continues where it was: tensors and JSON, no pickle.

::

    epoch-00002+0000150/         150 steps after epoch 2
        progress.json
        student.safetensors      its weights, under their own names
        best.safetensors         those of the best epoch so far
        training.safetensors     the optimizer's memory, averages, sums of losses
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from modelpack.disk import sync
from modelpack.errors import StageError
from modelpack.numerics import tensorfile
from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

PAUSE = 10.0
"""Seconds between two checkpoints, at least."""

COST = 50
"""The pause is at least so many times as long as the last checkpoint took to write."""

_PARTS = ("student", "best", "training")
_NAME = "epoch-{:05d}+{:07d}"


@dataclass
class Progress:
    """How far training is.

    Attributes:
        epoch: Epochs done.
        step: Steps done of the next one.
        rows: Rows that were learnt from in these.
        history: One line of figures per epoch.
        best: Highest score so far; None before the first evaluation.
        best_epoch: When it was reached; 0 is the untrained student.
        seconds: Spent on the epoch that is not done.
    """

    epoch: int = 0
    step: int = 0
    rows: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of one training: the newest one, in a directory of its own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._written, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether so much time has passed that losing it would be worse than writing a checkpoint.

        The first process of a crew decides: all must give their parts at the same time.
        """
        return bool(crew.told(time.monotonic() - self._written >= max(PAUSE, COST * self._cost)))

    @property
    def newest(self) -> Path | None:
        """The directory of the newest checkpoint; None when there is none."""
        return max(self.scratch.glob("epoch-*"), default=None)

    def write(self, progress: Progress, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint; it appears whole or not at all, and the one before it goes only afterwards.

        The first process of a crew writes it.
        """
        if crew.leads():
            began = time.monotonic()
            self._write(progress, parts)
            self._written = time.monotonic()
            self._cost = self._written - began

    def _write(self, progress: Progress, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        draft = self.scratch / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for part, values in parts.items():
            path = draft / f"{part}.safetensors"
            tensorfile.write({name: value.contiguous() for name, value in values.items()}, path)
            sync(path)
        (draft / "progress.json").write_text(json.dumps(asdict(progress)))
        sync(draft / "progress.json")
        sync(draft)
        place = self.scratch / _NAME.format(progress.epoch, progress.step)
        draft.rename(place)
        sync(self.scratch)
        for old in self.scratch.glob("epoch-*"):
            if old != place:
                shutil.rmtree(old)

    def keep(self, weights: Mapping[str, Tensor], epoch: int) -> Path:
        """Leave the weights of an epoch where no checkpoint replaces them; gives the file."""
        path = self.scratch / f"best-{epoch:05d}.safetensors"
        if crew.leads():
            tensorfile.write({name: value.contiguous() for name, value in weights.items()}, path)
        return path

    def read(self) -> tuple[Progress, dict[str, dict[str, Tensor]]] | None:
        """Read the newest checkpoint; None when there is none. The first process of a crew tells the others.

        Raises:
            StageError: When it cannot be read.
        """
        found = self._read() if crew.leads() else None
        progress = crew.told(asdict(found[0]) if found is not None else None)
        if progress is None:
            return None
        parts = found[1] if found is not None else {}
        return Progress(**progress), {part: crew.shown(parts.get(part)) for part in _PARTS}

    def _read(self) -> tuple[Progress, dict[str, dict[str, Tensor]]] | None:
        found = self.newest
        if found is None:
            return None
        try:
            progress = Progress(**json.loads((found / "progress.json").read_text()))
            return progress, {part: load_file(found / f"{part}.safetensors") for part in _PARTS}
        except Exception as error:
            raise StageError(
                f"the checkpoint of an interrupted try cannot be read: {error}",
                where=str(found),
                then="delete this directory; the step will start again",
            ) from error
