"""Tensors written to a file, a full disk told as any other write would tell it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_NUMBER = re.compile(r"os error (\d+)")


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors, none of which share memory, as a safetensors file.

    Raises:
        OSError: When the system refuses; safetensors itself hides that in an error of its own.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
