"""What students learn from their teacher: the same rows, other lessons and sizes, side by side.

Usage: ``python benchmarks/distillation.py [--model minilm] [--seeds 3] [--rounds 60] [--device cuda]``

It needs ``pip install --editable '.[dev]'`` and what ``recipes/minilm-int8.yaml``, ``recipes/passages/prepare.py`` and
``recipes/fashion-prune-distill.yaml`` say that they need. A model keeps its table until it is measured again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import materials
from cases import FASHION, TAUGHT, TRAINED_AFTERWARDS, by_heads
from judgement import CLOSENESS
from pruners import Plain
from workshop import Case, command

if TYPE_CHECKING:
    from collections.abc import Mapping


def _passages() -> dict[str, Any]:
    """Give the model and data of a recipe for texts of any kind."""
    ids = {"shape": ["batch", "sequence"], "dtype": "int64"}

    def rows(path: str, batch: int) -> dict[str, Any]:
        return {"text": {"path": path, "tokenizer": "minilm/data/tokenizer.json", "length": 128, "batch": batch}}

    return {
        "model": {
            "factory": "minilm/net.py:build",
            "weights": "minilm/data/minilm.safetensors",
            "inputs": {
                "input_ids": {**ids, "range": [0, 30521]},
                "attention_mask": {**ids, "range": [0, 1]},
            },
        },
        "data": {
            "train": rows("../recipes/passages/data/few.txt", 32),
            "test": rows("minilm/data/news.txt", 8),
        },
    }


def thinner(layers: int) -> tuple[dict[str, Any], ...]:
    """Keep some layers of MiniLM, and teach them by the original's embeddings and features."""
    rates = {"epochs": THIN.epochs, "lr": THIN.rate, "weight_decay": THIN.decay, "precision": "bfloat16"}
    lesson = {"outputs": 1, "features": 10}
    return ({"distill": {"data": "train", "keep_layers": layers, "imitate": lesson, **rates}},)


def pruned(**more: Any) -> tuple[dict[str, Any], ...]:
    """Leave three tenths of the ResNet, and teach it by what is said."""
    rates = {"epochs": NARROW.epochs, "lr": NARROW.rate, "weight_decay": NARROW.decay}
    cut = {"macs": 0.3, "importance": "taylor", "data": "sample", "round_to": 8, **TRAINED_AFTERWARDS}
    return ({"prune": cut}, {"distill": {**TAUGHT, **rates, **more}})


THIN, NARROW = Plain(1, 1e-3, 0.01), Plain(6, 5e-3, 0.05)

CASES: Mapping[str, Case] = {
    "minilm": Case(
        title="MiniLM with fewer of its six layers, without labels",
        body=_passages(),
        ours={"modelpack, three layers": thinner(3), "modelpack, four layers": thinner(4)},
        plain=THIN,
        peers=by_heads(0.5, ""),
        gather=lambda _recipe, rows: materials.sentences(rows),
        note=(
            "All learn from 6,000 passages, a twelfth of what `recipes/minilm-thin.yaml` has. Cosine: of embeddings of "
            "news from another country."
        ),
        judgement=CLOSENESS,
    ),
    "fashion": Case(
        title="A ResNet pruned to 30 % of its multiply-accumulates on Fashion-MNIST, taught in several ways",
        body=FASHION,
        ours={
            "labels alone": pruned(alpha=0),
            "labels and outputs (kl)": pruned(),
            "labels and outputs (dkd)": pruned(distance="dkd"),
            "outputs alone": pruned(alpha=1),
            "labels, outputs, features": pruned(imitate=["outputs", "features"]),
            "labels, outputs, similarity": pruned(imitate=["outputs", "similarity"]),
            "labels, outputs, new images every epoch": pruned(augment={"flip": True, "shift": 0.07, "variants": 0}),
        },
        plain=NARROW,
        peers={},
        gather=lambda _recipe, rows: materials.images(rows, mirrored=True, moved=2, batch=128),
        note="Accuracy on the 10,000 test images, on which nothing was chosen; one standard error is 0.26 points.",
    ),
}
"""Name on the command line → case."""

if __name__ == "__main__":
    command(__doc__, "distillation", CASES)
