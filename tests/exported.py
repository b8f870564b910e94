"""The small nets as ONNX artifacts: exported once for all tests of a process, when the first one asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nets
from modelpack.stages.export import export
from onnx_support import torch_artifact
from support import run_stage

if TYPE_CHECKING:
    from pathlib import Path

    from modelpack.artifact import Artifact

WIDE = {
    "cnn": ("nets.py:cnn", nets.IMAGE, {"arguments": {"width": 32}}),
    "encoder": ("nets.py:encoder", nets.TOKENS, {"arguments": {"width": 64, "hidden": 128, "vocabulary": 500}}),
    "grouped": ("nets.py:grouped", nets.PICTURE, {}),
}
"""Nets wide enough that rounding their weights makes them smaller."""


class Exported(dict[str, "Artifact"]):
    """Name of a net → its artifact."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Artifact:
        factory, inputs, more = WIDE[name]
        self[name] = run_stage(self.root, export, {}, model=torch_artifact(self.root, factory, inputs, **more))
        return self[name]
