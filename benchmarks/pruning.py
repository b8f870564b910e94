"""Pruning and recovery side by side: modelpack's recipe, and torch-pruning with plain fine-tuning.

Usage: ``python benchmarks/pruning.py [--model fashion] [--seeds 3] [--rounds 60] [--device cuda]``

It needs ``pip install --editable '.[dev]'`` and what ``recipes/fashion-prune-distill.yaml``,
``recipes/lite0-int8.yaml``, ``benchmarks/mnist/prepare.py`` and ``benchmarks/movies/prepare.py`` say that they need.
A model keeps its table until it is measured again.

Both sides see the same training rows for the same number of epochs; both are exported and judged by the same code.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from cases import CASES
from workshop import command

if __name__ == "__main__":
    command(__doc__, "pruning", CASES)
