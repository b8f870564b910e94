"""Which line of the user's model an error comes from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch
import torch_pruning

import modelpack

_OURS = tuple(Path(str(package.__file__)).parent for package in (modelpack, torch, torch_pruning))
_STANDARD = Path(sysconfig.get_paths()["stdlib"])
_INSTALLED = ("site-packages", "dist-packages")
_LONGEST = 80


def line(error: BaseException) -> str:
    """Name the last of the model's own statements that an error passed, as ``file:line: text``; empty for none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_models(Path(frame.filename))]
    if not frames:
        return ""
    text = frames[-1].line or ""
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"{_short(Path(frames[-1].filename))}:{frames[-1].lineno}: {short}"


def told(error: BaseException) -> str:
    """Say what an error says, and where it comes from."""
    words = " ".join(str(error).split())
    short = words if len(words) <= 200 else f"{words[:197]}..."
    where = line(error)
    return f"{type(error).__name__}: {short}{f' at {where}' if where else ''}"


def _is_models(path: Path) -> bool:
    if any(path.is_relative_to(folder) for folder in _OURS):
        return False
    return path.is_file() and (not path.is_relative_to(_STANDARD) or any(part in _INSTALLED for part in path.parts))


def _short(path: Path) -> Path:
    """Leave out the folders above an installed package, or above a user's file."""
    places = [place for place, part in enumerate(path.parts) if part in _INSTALLED]
    return Path(*path.parts[places[-1] + 1 :]) if places else Path(path.name)
