"""What pruning is tried on: a trained model, what modelpack's recipe says, and what torch-pruning is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import materials
import pruners
from file_pruners import CALIBRATION, on_files
from judgement import AGREEMENT
from pruners import Plain
from workshop import Case, Material

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rows import Feed
    from torch import nn

    from modelpack.recipe import Recipe

    Peer = Callable[[nn.Module, Material], nn.Module]
    Gather = Callable[[Recipe, Feed], Material]

OURS = "modelpack"


def by_channels(keep: float, head: str) -> dict[str, Peer]:
    """Let torch-pruning reach a fraction of the multiply-accumulates in two ways; layer `head` keeps its outputs."""

    def pruned(net: nn.Module, material: Material, *, taylor: bool) -> nn.Module:
        sample = material.sample if taylor else ()
        on_device = {name: rows.to(next(net.parameters()).device) for name, rows in material.example.items()}
        return pruners.channels(net, on_device, net.get_submodule(head), keep, sample)

    return {
        "torch-pruning, group norm": lambda net, material: pruned(net, material, taylor=False),
        "torch-pruning, Taylor": lambda net, material: pruned(net, material, taylor=True),
    }


def by_heads(share: float, encoder: str) -> dict[str, Peer]:
    """Let torch-pruning remove a share of the heads and of the inner width of an encoder at a path, or of the whole."""

    def prune(net: nn.Module, material: Material) -> nn.Module:
        layers = list(net.get_submodule(f"{encoder}.layers" if encoder else "layers"))
        on_device = {name: rows.to(next(net.parameters()).device) for name, rows in material.example.items()}
        return pruners.heads_and_widths(net, on_device, layers, [layer.inner for layer in layers], share)

    return {"torch-pruning, group norm": prune}


def grey(folder: str, weights: str, images: str) -> dict[str, Any]:
    """Give the model and data of a recipe for grey pictures of 28 by 28, of ``train`` or ``t10k``."""

    def rows(part: str, **more: Any) -> dict[str, Any]:
        held = [images.format("t10k" if part == "test" else "train")]
        return {"python": {"callable": f"{folder}/data.py:{part}", "files": held, **more}}

    return {
        "model": {
            "factory": f"{folder}/net.py:build",
            "weights": f"{folder}/data/{weights}",
            "inputs": {"image": {"shape": ["batch", 1, 28, 28], "range": [0, 1]}},
        },
        "data": {
            "train": rows("train", batch=128),
            "sample": rows("train", limit=1024, seed=1),
            "validation": rows("validation", batch=256),
            "test": rows("test", batch=256),
        },
    }


FASHION = grey("fashion", "fashion.safetensors", "/usr/share/datasets/fashion-mnist/{}-images-idx3-ubyte.gz")
"""The model and data of the Fashion-MNIST case."""


def _photos() -> dict[str, Any]:
    """Give the model and data of a recipe for photos without labels."""
    seen = {"size": 256, "crop": 224, "resample": "bicubic", "scale": 1, "mean": 127, "std": 128}

    def rows(part: str) -> dict[str, Any]:
        return {"image_folder": {"path": f"lite0/data/{part}", **seen, "batch": 32}}

    return {
        "model": {
            "factory": "lite0/net.py:build",
            "weights": "lite0/data/lite0.safetensors",
            "inputs": {"image": {"shape": ["batch", 3, 224, 224], "range": [-1, 1]}},
        },
        "data": {"train": rows("calibration"), "test": rows("test")},
    }


def _sentences() -> dict[str, Any]:
    """Give the model and data of a recipe for sentences about movies."""
    ids = {"shape": ["batch", "sequence"], "dtype": "int64"}

    def rows(part: str, **more: Any) -> dict[str, Any]:
        held = {"path": f"movies/data/{part}.csv", "tokenizer": "minilm/data/tokenizer.json"}
        return {"text": {**held, "column": "text", "label": "label", "length": 64, **more}}

    return {
        "model": {
            "factory": "movies/net.py:build",
            "weights": "movies/data/movies.safetensors",
            "inputs": {
                "input_ids": {**ids, "range": [0, 30521]},
                "attention_mask": {**ids, "range": [0, 1]},
            },
        },
        "data": {
            "train": rows("train", batch=32),
            "sample": rows("train", batch=32, limit=512),
            "validation": rows("validation", batch=50),
            "test": rows("test", batch=50),
        },
    }


TAUGHT = {"data": "train", "eval_data": "validation", "precision": "bfloat16"}
"""What all of our trainings with labels have in common."""


TRAINED_AFTERWARDS = {"refit": False}
"""Where so many epochs with labels follow, it makes no difference from which weights they start."""


def _on_grey(cut: Mapping[str, Any], plain: Plain, *, mirrored: bool, **more: Any) -> dict[str, Any]:
    """Say how a network for grey pictures is pruned and taught: blocks go whole, then channels, then all learn."""
    augment = {"flip": mirrored, "shift": 0.07, "variants": 0}
    rates = {"epochs": plain.epochs, "lr": plain.rate, "weight_decay": plain.decay}

    def gather(_recipe: Recipe, rows: Feed) -> Material:
        return materials.images(rows, mirrored=mirrored, moved=2, batch=128)

    return {
        "ours": {
            OURS: (
                {"prune": {"drop": ["body.0", "body.1", "body.3"]}, "id": "shallow"},
                {"prune": {"importance": "taylor", "data": "sample", **TRAINED_AFTERWARDS, **cut}, "id": "narrow"},
                {"distill": {**TAUGHT, **rates, "augment": augment, **more}},
            )
        },
        "plain": plain,
        "gather": gather,
    }


def _photos_again(_recipe: Recipe, rows: Feed) -> Material:
    return materials.images(rows, mirrored=True, moved=16, batch=32)


PHOTO_EPOCHS, SENTENCE_EPOCHS = 5, 3
SEEN_ALIKE = (
    "Agreement: share of 109 other photos whose first class is the original's; one standard error is 3 to 5 points."
)

CASES: Mapping[str, Case] = {
    "fashion": Case(
        title="A small ResNet on Fashion-MNIST, 30 % of its multiply-accumulates",
        body=FASHION,
        peers=by_channels(0.3, "head"),
        note="Accuracy on the 10,000 test images, on which nothing was chosen; one standard error is 0.26 points.",
        **_on_grey({"macs": 0.65, "round_to": 16}, Plain(12, 5e-3, 0.05), mirrored=True, alpha=0.1),
    ),
    "mnist": Case(
        title="The same ResNet on MNIST, 20 % of its multiply-accumulates",
        body=grey("mnist", "mnist.safetensors", "mnist/data/{}-images-idx3-ubyte.gz"),
        peers=by_channels(0.2, "head"),
        note="Accuracy on the 10,000 test images, on which nothing was chosen; one standard error is 0.07 points.",
        # The original learned these digits for two epochs alone: the labels know more than it does.
        **_on_grey({"macs": 0.43}, Plain(4, 5e-3, 0.05), mirrored=False, alpha=0.1),
    ),
    "movies": Case(
        title="MiniLM fine-tuned on sentences about movies, half its heads and its inner width",
        body=_sentences(),
        ours={
            OURS: (
                {"prune": {"macs": 0.5, "importance": "taylor", "data": "sample", **TRAINED_AFTERWARDS}},
                {"distill": {**TAUGHT, "epochs": SENTENCE_EPOCHS, "lr": 1e-4, "weight_decay": 0.01,
                             "imitate": ["outputs", "features"]}},
            )
        },
        plain=Plain(SENTENCE_EPOCHS, 1e-4, 0.01),
        peers=by_heads(0.5, "encoder"),
        gather=lambda _recipe, rows: materials.sentences(rows),
        note="Accuracy on 1,500 sentences, on which nothing was chosen; one standard error is 0.87 points.",
    ),
    "lite0": Case(
        title="EfficientNet-Lite0 without labels, 80 % of its multiply-accumulates",
        body=_photos(),
        ours={
            OURS: (
                {"prune": {"macs": 0.8, "importance": "fisher", "data": "train"}},
                {"recover": {"data": "train", "epochs": 0}},
            ),
        },
        plain=Plain(PHOTO_EPOCHS, 2e-4, 1e-4),
        peers=by_channels(0.8, "_fc"),
        gather=_photos_again,
        note=f"Both sides have 216 photos without labels. {SEEN_ALIKE}",
        judgement=AGREEMENT,
    ),
    "refit": Case(
        title="EfficientNet-Lite0 right after the cut, without any training",
        body=_photos(),
        ours={
            f"{importance} to {keep:.0%}{', refitted' * refit}": ({"prune": {
                "macs": keep, "importance": importance, "data": "train" if refit or importance != "l2" else None,
                "refit": refit,
            }},)
            for keep in (0.8, 0.6)
            for importance in ("l2", "taylor", "fisher")
            for refit in (False, True)
        },
        plain=Plain(0, 0, 0),
        peers={},
        gather=_photos_again,
        note=f"`refit` looks at 216 photos without labels. {SEEN_ALIKE}",
        judgement=AGREEMENT,
    ),
    "onnxsim": Case(
        title="EfficientNet-Lite0 beside onnxsim, 80 % of its multiply-accumulates, without any training",
        body=_photos(),
        ours={
            f"modelpack, {importance}": ({"prune": {"macs": 0.8, "importance": importance, "data": "train"}},)
            for importance in ("l2", "fisher")
        },
        plain=Plain(0, 0, 0),
        peers={},
        gather=_photos_again,
        note=f"Ours looks at 216 photos without labels, Wanda at {CALIBRATION} of them, the norm at none. {SEEN_ALIKE}",
        judgement=AGREEMENT,
        files=on_files(0.8),
    ),
    "onnxsim-fashion": Case(
        title="The ResNet on Fashion-MNIST beside onnxsim, 60 % of its multiply-accumulates, without any training",
        body=FASHION,
        ours={
            f"modelpack, {importance}": ({"prune": {"macs": 0.6, "importance": importance, "data": "sample"}},)
            for importance in ("l2", "taylor")
        },
        plain=Plain(0, 0, 0),
        peers={},
        gather=_photos_again,
        note=f"Ours looks at 1,024 training images, Wanda at {CALIBRATION}, the norm at none.",
        files=on_files(0.6),
    ),
}  # fmt: skip
"""Name on the command line → case."""
