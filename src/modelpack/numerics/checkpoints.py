"""Weights that users bring: read as plain tensors, never unpickled, compared with the model before anything is used."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modelpack.errors import StageError, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 10


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what had to be done to find them."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read(path: Path) -> Checkpoint:
    """Read a ``.safetensors`` file, or a ``.pt``/``.pth`` file without unpickling anything but tensors.

    Raises:
        StageError: For another kind of file, one that needs unpickling, or one that holds no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path))
        except (SafetensorError, OSError) as error:
            raise StageError(f"not a safetensors file: {error}", where=str(path)) from error
    if path.suffix not in (".pt", ".pth"):
        raise StageError(
            f"weights of the type '{path.suffix or path.name}' are not read",
            where=str(path),
            then="give a .safetensors file, or a .pt or .pth file that holds a state dict",
        )
    return _unwrap(_load_plain(path), path)


def _load_plain(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StageError(
            f"the checkpoint can only be read by unpickling, which may run any code: {_reason(str(error))}",
            where=str(path),
            then="where you trust it, load it and write its tensors with "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise StageError(f"not a readable checkpoint: {_first_line(str(error))}", where=str(path)) from error


def _reason(text: str) -> str:
    code = re.search(r"GLOBAL (\S+)", text)
    if code is not None:
        return f"it holds '{code[1]}', which is code"
    found = re.search(r"(Unsupported (?:global|class|operand)[^\n]*|Trying to [^\n]*)", text)
    return _first_line(found.group(0) if found else text)


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "unknown format"
    return line if len(line) <= 200 else f"{line[:197]}..."


def _unwrap(value: object, path: Path) -> Checkpoint:
    notes: list[str] = []
    while isinstance(value, dict) and not any(isinstance(item, torch.Tensor) for item in value.values()):
        key = next((name for name in _WRAPPERS if isinstance(value.get(name), dict)), None)
        if key is None:
            break
        others = sorted(str(name) for name in value if name != key)
        notes.append(f"took '{key}' of the checkpoint" + (f", left {_listed(others)}" if others else ""))
        value = value[key]
    if not isinstance(value, dict) or not any(isinstance(item, torch.Tensor) for item in value.values()):
        kind = f"a dict of {_listed(sorted(map(str, value)))}" if isinstance(value, dict) else type(value).__name__
        raise StageError(
            f"the checkpoint holds no state dict but {kind}", where=str(path), then="save model.state_dict() itself"
        )
    tensors = {str(name): item for name, item in value.items() if isinstance(item, torch.Tensor)}
    if len(tensors) < len(value):
        notes.append(f"left out what is no tensor: {_listed(sorted(str(n) for n in value if str(n) not in tensors))}")
    return Checkpoint(tensors, tuple(notes))


def fill(module: nn.Module, checkpoint: Checkpoint, where: str) -> tuple[str, ...]:
    """Load a checkpoint into a module, every key and every shape agreeing.

    Returns:
        What the user should know: prefixes removed, element types converted.

    Raises:
        StageError: Listing the first ten missing, unknown and differently shaped tensors.
    """
    expected: dict[str, Any] = module.state_dict(keep_vars=True)
    given, notes = _without_prefixes(checkpoint.tensors, set(expected))
    shapes = [
        f"{name}: file {list(value.shape)}, model {list(expected[name].shape)}"
        for name, value in given.items()
        if name in expected and expected[name].shape != value.shape
    ]
    wrong = {line.partition(":")[0] for line in shapes}
    result = module.load_state_dict({k: v for k, v in given.items() if k not in wrong}, strict=False)
    # One end of a tie is enough, and counters of batches are absent from old checkpoints.
    filled = {id(expected[name]) for name in given if name in expected}
    missing = [name for name in result.missing_keys if name not in wrong and id(expected[name]) not in filled]
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    missing = [name for name in missing if name not in counters]
    if missing or result.unexpected_keys or shapes:
        raise StageError(
            "the weights do not fit the model:"
            + _table("missing from the file", missing)
            + _table("unknown to the model", result.unexpected_keys)
            + _table("of another shape", shapes),
            where=where,
            then="check factory and arguments, or the file",
        )
    converted = sorted(
        {
            f"{v.dtype} to {expected[k].dtype}"
            for k, v in given.items()
            if k in expected and expected[k].dtype != v.dtype
        }
    )
    notes += [f"converted weights from {item}".replace("torch.", "") for item in converted]
    if counters:
        notes.append(f"{len(counters)} num_batches_tracked are not in the file; evaluation does not need them")
    return (*checkpoint.notes, *notes)


def _without_prefixes(tensors: Mapping[str, Tensor], expected: set[str]) -> tuple[Mapping[str, Tensor], list[str]]:
    notes = []
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors) and not any(n.startswith(prefix) for n in expected):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                notes.append(f"removed the prefix '{prefix}' that a wrapper left on every weight")
                changed = True
    return tensors, notes


def _table(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    more = f"\n    … and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"\n  {len(lines)} {title}:" + "".join(f"\n    {line}" for line in lines[:_SHOWN]) + more


def _listed(names: Iterable[str]) -> str:
    return listed((f"'{name}'" for name in names), _SHOWN)
