"""Train the quickstart's checkpoint, ``digits.safetensors``: about half a minute on one core.

Usage: ``python recipes/digits/train.py [--epochs 60] [--output recipes/digits/digits.safetensors]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import test, train
from net import build
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional


def shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    """Move the whole batch by up to one pixel each way, filling with black: no digit is quite centred."""
    down, right = (int(torch.randint(0, 3, (), generator=draw)) for _ in range(2))
    return functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def fit(net: nn.Module, epochs: int, seed: int = 0, batch: int = 64) -> None:
    """Train in place on the training rows: AdamW, one-cycle learning rate, label smoothing, random shifts."""
    rows = train()
    images, labels = torch.from_numpy(rows["image"]), torch.from_numpy(rows["label"])
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    steps = -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, epochs=epochs, steps_per_epoch=steps)
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for part in torch.randperm(len(labels), generator=draw).split(batch):
            loss = functional.cross_entropy(net(shifted(images[part], draw)), labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3} of {epochs}: loss {total / len(labels):.3f}")


@torch.inference_mode()
def accuracy(net: nn.Module) -> float:
    """Give the share of the test rows that the network names correctly."""
    rows = test()
    guesses = net.eval()(torch.from_numpy(rows["image"])).argmax(1)
    return (guesses == torch.from_numpy(rows["label"])).double().mean().item()


def main() -> None:
    """Train, print the test accuracy, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("digits.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build()
    fit(net, options.epochs)
    print(f"test accuracy {accuracy(net):.4f}")
    save_file(net.state_dict(), options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
