"""Pruning in several steps with healing after each, first fast and then slowly (Zhu & Gupta 2017, arXiv 1710.01878).

A killed run continues where it was. What a step leaves is kept as data, and the next one always starts from what was
kept, so that a run which was interrupted computes the same numbers as one that was not::

    002-cut/  or  002-healed/
        state.json           what stays, what was reported, the edits
        tensors.safetensors
    002-training/            the checkpoints of the healing that is under way
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from modelpack.disk import sync
from modelpack.errors import StageError
from modelpack.numerics import edits, tensorfile
from modelpack.numerics.training import crew

_LENIENT = 0.1
"""How far from its fraction a step before the last may end, at most."""

Row = dict[str, Any]
"""What is reported of a step, as JSON."""

Cut = Callable[[nn.Module, float, float], tuple[nn.Module, float, Row]]
"""Makes a smaller copy of a model.

Given the model so far, the fraction of the whole one that shall stay, and how far from that it may end, relative to it;
gives the copy, the fraction of the whole model that stays, and what to report.
"""

Heal = Callable[[nn.Module, int, Path], Row]
"""Trains a model in place after a step, resuming from a directory of its own; gives what to report."""


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        module: The model so far.
        done: Steps cut.
        healed: Whether the last of them is healed.
        fraction: What stays of the original model's quantity.
        rows: What is reported of each step.
        resumed: Steps that an earlier, interrupted try had cut.
    """

    module: nn.Module
    done: int = 0
    healed: bool = True
    fraction: float = 1.0
    rows: list[Row] = field(default_factory=list)
    resumed: int = 0


def fractions(keep: float, steps: int) -> list[float]:
    """Give what shall stay after each step: what goes follows a cubic curve that flattens towards the end.

    >>> [round(fraction, 3) for fraction in fractions(0.2, 4)]
    [0.538, 0.3, 0.213, 0.2]
    """
    return [keep + (1 - keep) * (1 - step / steps) ** 3 for step in range(1, steps)] + [keep]


def prune(
    module: nn.Module, wanted: Sequence[float], cut: Cut, heal: Heal, scratch: Path, *, alone: bool = False
) -> Progress:
    """Cut and heal a model once for each fraction.

    Args:
        module: The whole model; left as it is.
        wanted: What shall stay of it after each step, falling.
        cut: Makes the model smaller.
        heal: Called after each cut.
        scratch: Directory for what an interrupted run continues from.
        alone: Of a crew only the first process cuts, since cutting takes times, which the others would disturb.

    Raises:
        StageError: When a step cannot be cut or healed, or what an interrupted run left cannot be read.
    """
    progress = _read(module, scratch)
    resumed = progress.done
    while progress.done < len(wanted) or not progress.healed:
        if progress.healed and (crew.leads() or not alone):
            progress = _cut(progress, wanted, cut)
        elif not progress.healed:
            progress = _healed(progress, wanted, heal, scratch)
        if crew.leads():
            _write(progress, module, scratch)
        progress = _read(module, scratch)
    return Progress(progress.module, progress.done, True, progress.fraction, progress.rows, resumed)


def _cut(progress: Progress, wanted: Sequence[float], cut: Cut) -> Progress:
    step = progress.done + 1
    try:
        keep = min(wanted[step - 1], progress.fraction)
        smaller, fraction, row = cut(progress.module, keep, _slack(wanted, step))
    except StageError as error:
        hint = f"{error.then}; " if error.then else ""
        raise StageError(
            error.what, where=_where(step, wanted, error), then=f"{hint}or take another number of steps"
        ) from error
    told = {"step": step, "wanted": wanted[step - 1], "kept": fraction, **row}
    return Progress(smaller, step, False, fraction, [*progress.rows, told])


def _slack(wanted: Sequence[float], step: int) -> float:
    """Let a step end half way to the next one: only the last one counts."""
    here = wanted[step - 1]
    return min(_LENIENT, (here - wanted[step]) / here / 2) if step < len(wanted) else 0.0


def _healed(progress: Progress, wanted: Sequence[float], heal: Heal, scratch: Path) -> Progress:
    training = scratch / f"{progress.done:03d}-training"
    training.mkdir(parents=True, exist_ok=True)
    try:
        row = {**progress.rows[-1], **heal(progress.module, progress.done, training)}
    except StageError as error:
        raise StageError(error.what, where=_where(progress.done, wanted, error), then=error.then) from error
    return Progress(progress.module, progress.done, True, progress.fraction, [*progress.rows[:-1], row])


def _where(step: int, wanted: Sequence[float], error: StageError) -> str:
    """Say in which step an error came up, and where in it."""
    return ": ".join(filter(None, (f"step {step} of {len(wanted)}", error.where)))


def _write(progress: Progress, whole: nn.Module, scratch: Path) -> None:
    """Keep what a step left; it appears whole or not at all, and what came before it goes only afterwards."""
    draft = scratch / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensorfile.write(edits.tensors(progress.module, whole), draft / "tensors.safetensors")
    state = {
        "done": progress.done,
        "healed": progress.healed,
        "fraction": progress.fraction,
        "rows": progress.rows,
        "edits": edits.difference(whole, progress.module),
    }
    (draft / "state.json").write_text(json.dumps(state))
    for path in (draft / "tensors.safetensors", draft / "state.json", draft):
        sync(path)
    made = draft.rename(scratch / f"{progress.done:03d}-{'healed' if progress.healed else 'cut'}")
    sync(scratch)
    for old in scratch.glob("[0-9][0-9][0-9]-*"):
        if old != made:
            shutil.rmtree(old)


def _read(whole: nn.Module, scratch: Path) -> Progress:
    """Rebuild the model that the newest finished part of a step left; the whole one where there is none.

    In a crew all processes continue from what the first one kept.
    """
    kept = _kept(scratch) if crew.leads() else None
    state, tensors = crew.told(kept and kept[0]), crew.shown(kept and kept[1])
    if state is None:
        return Progress(whole)
    module = copy.deepcopy(whole)
    edits.apply(module, state["edits"])
    device = next(whole.parameters()).device
    edits.put(module, {name: value.to(device) for name, value in tensors.items()})
    return Progress(module, state["done"], state["healed"], state["fraction"], state["rows"])


def _kept(scratch: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    found = sorted([*scratch.glob("[0-9][0-9][0-9]-cut"), *scratch.glob("[0-9][0-9][0-9]-healed")])
    if not found:
        return None
    try:
        return json.loads((found[-1] / "state.json").read_text()), load_file(found[-1] / "tensors.safetensors")
    except Exception as error:
        raise StageError(
            f"what an interrupted try left cannot be read: {error}",
            where=str(found[-1]),
            then="delete this directory; the step will start again",
        ) from error
