"""What pruning is tried on: a trained model, what modelpack's recipe says, and what torch-pruning is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pruners
import torch
from pruners import Plain
from rows import columns
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pruners import Batch

    from modelpack.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """A case's rows, as torch-pruning's side reads them.

    Attributes:
        example: Inputs of one call.
        sample: Batches for importance.
        batches: Seed and epoch → the batches of an epoch.
        steps: Batches of an epoch.
    """

    example: tuple[Tensor, ...]
    sample: list[Batch]
    batches: Callable[[int, int], Iterator[Batch]]
    steps: int


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        title: Its heading.
        body: The recipe's model and data.
        ours: Steps that prune and teach; the last one's model is judged.
        plain: How the others are fine-tuned.
        peers: Name → how torch-pruning prunes.
        gather: Reads the rows for torch-pruning's side.
        note: What the rows are.
    """

    title: str
    body: Mapping[str, Any]
    ours: Sequence[Mapping[str, Any]]
    plain: Plain
    peers: Mapping[str, Callable[[nn.Module, Material], nn.Module]]
    gather: Callable[[Recipe], Material]
    note: str


def images(recipe: Recipe, *, mirrored: bool, batch: int = 128) -> Material:
    """Read pictures; they are moved by up to two pixels, and mirrored where they may be."""
    rows, few = columns(recipe, "train"), columns(recipe, "sample")
    pictures, classes = torch.from_numpy(rows["image"]), torch.from_numpy(rows["label"])

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(classes), generator=draw).split(batch):
            picked = pictures[chosen]
            if mirrored and torch.rand((), generator=draw) < 0.5:
                picked = picked.flip(3)
            down, right = (int(torch.randint(0, 5, (), generator=draw)) for _ in range(2))
            height, width = picked.shape[2:]
            moved = functional.pad(picked, (2, 2, 2, 2))[:, :, down : down + height, right : right + width]
            yield (moved.contiguous(memory_format=torch.channels_last),), classes[chosen]

    parts = zip(torch.from_numpy(few["image"]).split(128), torch.from_numpy(few["label"]).split(128), strict=True)
    return Material((pictures[:2],), [((some,), truth) for some, truth in parts], batches, -(-len(classes) // batch))


def sentences(recipe: Recipe, batch: int = 32) -> Material:
    """Read token numbers; a batch is as long as its longest sentence."""
    rows = columns(recipe, "train")
    tokens, classes = torch.from_numpy(rows["input_ids"]), torch.from_numpy(rows["label"])
    mask = torch.from_numpy(rows["attention_mask"])

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(classes), generator=draw).split(batch):
            longest = int(mask[chosen].sum(1).max())
            yield (tokens[chosen, :longest], mask[chosen, :longest]), classes[chosen]

    first = next(batches(0, 0))[0]
    return Material((first[0][:2], first[1][:2]), [], batches, -(-len(classes) // batch))


def by_channels(keep: float, *, taylor: bool) -> Callable[[nn.Module, Material], nn.Module]:
    """Let torch-pruning remove channels until a fraction of the multiply-accumulates is left."""

    def prune(net: nn.Module, material: Material) -> nn.Module:
        return pruners.channels(net, material.example, net.head, keep, material.sample if taylor else ())

    return prune


def by_heads(share: float) -> Callable[[nn.Module, Material], nn.Module]:
    """Let torch-pruning remove a share of the heads and of the inner width."""

    def prune(net: nn.Module, material: Material) -> nn.Module:
        layers = list(net.encoder.layers)
        return pruners.heads_and_widths(net, material.example, layers, [layer.inner for layer in layers], share)

    return prune


def _pictures(folder: str, weights: str, images: str) -> dict[str, Any]:
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
"""What all of our trainings have in common."""


def _on_pictures(cut: Mapping[str, Any], epochs: int, *, mirrored: bool) -> dict[str, Any]:
    """Say how a network for pictures is pruned and taught: blocks go whole, then channels, then all learn together."""
    plain = Plain(epochs, 5e-3, 0.05)
    augment = {"flip": mirrored, "shift": 0.07, "variants": 0}
    rates = {"epochs": epochs, "lr": plain.rate, "weight_decay": plain.decay}
    return {
        "ours": [
            {"prune": {"drop": ["body.0", "body.1", "body.3"]}, "id": "shallow"},
            {"prune": {"importance": "taylor", "data": "sample", **cut}, "id": "narrow"},
            {"distill": {**TAUGHT, **rates, "augment": augment}},
        ],
        "plain": plain,
        "gather": lambda recipe: images(recipe, mirrored=mirrored),
    }


def _of_channels(keep: float) -> dict[str, Callable[[nn.Module, Material], nn.Module]]:
    """Let torch-pruning reach a fraction of the multiply-accumulates in both of its ways."""
    names = {"torch-pruning, group norm": False, "torch-pruning, Taylor": True}
    return {name: by_channels(keep, taylor=taylor) for name, taylor in names.items()}


CASES: Mapping[str, Case] = {
    "fashion": Case(
        title="A small ResNet on Fashion-MNIST, 30 % of its multiply-accumulates",
        body=_pictures("fashion", "fashion.safetensors", "/usr/share/datasets/fashion-mnist/{}-images-idx3-ubyte.gz"),
        peers=_of_channels(0.3),
        note="Accuracy on the 10,000 test images, on which nothing was chosen; one standard error is 0.26 points.",
        **_on_pictures({"macs": 0.65, "round_to": 16}, 12, mirrored=True),
    ),
    "mnist": Case(
        title="The same ResNet on MNIST, 20 % of its multiply-accumulates",
        body=_pictures("mnist", "mnist.safetensors", "mnist/data/{}-images-idx3-ubyte.gz"),
        peers=_of_channels(0.2),
        note="Accuracy on the 10,000 test images, on which nothing was chosen; one standard error is 0.07 points.",
        **_on_pictures({"macs": 0.43}, 4, mirrored=False),
    ),
    "movies": Case(
        title="MiniLM fine-tuned on sentences about movies, half its heads and its inner width",
        body=_sentences(),
        ours=[
            {"prune": {"macs": 0.5, "importance": "taylor", "data": "sample"}},
            {"distill": {**TAUGHT, "epochs": 3, "lr": 1e-4, "weight_decay": 0.01, "imitate": ["outputs", "features"]}},
        ],
        plain=Plain(3, 1e-4, 0.01),
        peers={"torch-pruning, group norm": by_heads(0.5)},
        gather=sentences,
        note="Accuracy on 1,500 sentences, on which nothing was chosen; one standard error is 0.87 points.",
    ),
}
"""Name on the command line → case."""
