"""Rows of a case as torch-pruning's side reads them: batches in an order and with changes that follow from the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from workshop import Material

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pruners import Batch
    from rows import Feed
    from torch import Tensor


def images(rows: Feed, *, mirrored: bool, moved: int, batch: int, few: int = 256) -> Material:
    """Give pictures (rows, channels, height, width), moved by up to `moved` pixels, and mirrored where they may be."""
    pictures, truth = torch.from_numpy(rows["image"]), torch.from_numpy(rows["truth"])

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(truth), generator=draw).split(batch):
            yield (changed(pictures[chosen], draw).contiguous(memory_format=torch.channels_last),), truth[chosen]

    def changed(picked: Tensor, draw: torch.Generator) -> Tensor:
        """Mirror and move every picture on its own, as our side does."""
        count, _, height, width = picked.shape
        if mirrored:
            turned = torch.rand((count, 1, 1, 1), generator=draw) < 0.5
            picked = torch.where(turned, picked.flip(3), picked)
        down, right = torch.randint(0, 2 * moved + 1, (2, count, 1), generator=draw)
        wide = functional.pad(picked, (moved,) * 4).movedim(1, -1)
        places = torch.arange(count)[:, None, None]
        kept = wide[places, (down + torch.arange(height))[:, :, None], (right + torch.arange(width))[:, None, :]]
        return kept.movedim(-1, 1)

    parts = zip(pictures[:few].split(batch), truth[:few].split(batch), strict=True)
    sample: list[Batch] = [((some,), wanted) for some, wanted in parts]
    return Material({"image": pictures[:2]}, sample, batches, -(-len(truth) // batch))


def sentences(rows: Feed, batch: int = 32) -> Material:
    """Give token numbers and masks (rows, tokens); a batch is as long as its longest sentence."""
    tokens, truth = torch.from_numpy(rows["input_ids"]), torch.from_numpy(rows["truth"])
    mask = torch.from_numpy(rows["attention_mask"])

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(truth), generator=draw).split(batch):
            longest = int(mask[chosen].sum(1).max())
            yield (tokens[chosen, :longest], mask[chosen, :longest]), truth[chosen]

    def example() -> dict[str, Tensor]:
        (first, shown), _ = next(batches(0, 0))
        return {"input_ids": first[:2], "attention_mask": shown[:2]}

    return Material(example(), [], batches, -(-len(truth) // batch))
