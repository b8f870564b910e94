"""What training leaves after every epoch, so that a killed run continues where it was: tensors and JSON, no pickle."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from modelpack.disk import sync
from modelpack.errors import StageError
from modelpack.numerics import tensorfile
from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

_NAME = "epoch-{:05d}"


@dataclass
class Progress:
    """How far training is.

    Attributes:
        epoch: Epochs done.
        history: One line of figures per epoch.
        best: Highest score so far; None before the first evaluation.
        best_epoch: When it was reached; 0 is the untrained student.
        scaler: State of the loss scaler of float16.
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Collect a module's parameters and buffers, each once and whole, as copies on the CPU."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: crew.whole(tensor.detach()).cpu().clone() for name, tensor in named.items()}


def restore(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `state` collected, in place."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        crew.fill(tensor, tensors[name])


def save(
    scratch: Path, progress: Progress, module: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> None:
    """Write a checkpoint; it appears whole or not at all, and the one before it goes only afterwards.

    All processes of a crew give their parts of it, the first one writes.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    tensors = {f"model/{name}": value for name, value in state(module).items()}
    tensors |= {f"best/{name}": value.clone() for name, value in best.items()}
    for parameter, values in optimizer.state.items():
        tensors |= {
            f"optimizer/{names[parameter]}/{key}": crew.whole(value.detach()).cpu().clone()
            for key, value in values.items()
        }
    if not crew.leads():
        return
    draft = scratch / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensorfile.write({name: value.contiguous() for name, value in tensors.items()}, draft / "state.safetensors")
    (draft / "progress.json").write_text(json.dumps(asdict(progress)))
    for path in (draft / "state.safetensors", draft / "progress.json", draft):
        sync(path)
    draft.rename(scratch / _NAME.format(progress.epoch))
    sync(scratch)
    for old in scratch.glob("epoch-*"):
        if old.name != _NAME.format(progress.epoch):
            shutil.rmtree(old)


def resume(
    scratch: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Put module and optimizer where the newest checkpoint left them; None when there is none.

    The first process of a crew reads it, and tells the others.

    Returns:
        The progress, and the best tensors so far.

    Raises:
        StageError: When the checkpoint cannot be read.
    """
    progress, tensors = _read(scratch) if crew.leads() else (None, {})
    told = crew.told(asdict(progress) if progress is not None else None)
    if told is None:
        return None
    progress, tensors = Progress(**told), crew.shown(tensors)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
    slots: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            owner, _, key = rest.rpartition("/")
            slots.setdefault(owner, {})[key] = tensor
        else:
            parts[part][rest] = tensor
    restore(module, parts["model"])
    for name, parameter in module.named_parameters():
        if name in slots:
            # AdamW keeps its step counters on the CPU wherever the parameters are.
            optimizer.state[parameter] = {
                key: value if key == "step" else crew.dealt_like(value, parameter) for key, value in slots[name].items()
            }
    return progress, parts["best"]


def _read(scratch: Path) -> tuple[Progress | None, dict[str, Tensor]]:
    found = sorted(scratch.glob("epoch-*"))
    if not found:
        return None, {}
    try:
        progress = Progress(**json.loads((found[-1] / "progress.json").read_text()))
        return progress, load_file(found[-1] / "state.safetensors")
    except Exception as error:
        raise StageError(
            f"the checkpoint of an interrupted try cannot be read: {error}",
            where=str(found[-1]),
            then="delete this directory; the step will start again",
        ) from error
