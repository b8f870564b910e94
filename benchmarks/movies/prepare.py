"""Fill ``benchmarks/movies/data`` with rated sentences and a classifier of them: some minutes of one core.

Usage: ``python benchmarks/movies/prepare.py [--epochs 1] [--threads 1]``, after ``make models`` and
``python recipes/minilm/prepare.py``.

The sentences are those of the movie reviews that the source distribution of ``vaderSentiment`` 3.3.2 (MIT) brings, each
with the mean of 20 people's ratings from -4 to 4. Those with a mean of at least 1 either way are kept: two classes.
The encoder is MiniLM-L6 as the recipe has it, trained on with a linear layer for one epoch.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
MINILM = HERE.parents[1] / "recipes" / "minilm" / "data"
sys.path.insert(0, str(HERE))

RATINGS = "movieReviewSnippets_GroundTruth.txt"
PARTS = {"test": 1500, "validation": 500}
"""Part → sentences that it gets before the rest goes to training."""


def sentences() -> list[tuple[str, int]]:
    """Give the clearly rated sentences, and 1 for those that are meant well."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "vaderSentiment==3.3.2"], cwd=scratch, check=True)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as outer:
            held = next(member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
            content = outer.extractfile(held)
            assert content is not None, "a regular file"
            with tarfile.open(fileobj=io.BytesIO(content.read())) as inner:
                rated = inner.extractfile(next(member for member in inner if member.name.endswith(RATINGS)))
                assert rated is not None, "a regular file"
                lines = rated.read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(text, int(float(mean) > 0)) for _, mean, text in rows if abs(float(mean)) >= 1]


def divide(rows: list[tuple[str, int]], output: Path) -> None:
    """Write one file for each part, drawn at random."""
    order = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    begin = 0
    for part, count in (*PARTS.items(), ("train", len(rows))):
        with (output / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *order[begin : begin + count]])
        begin += count


def encoded(part: str) -> tuple[list[list[int]], Tensor]:
    """Read a part as token numbers and classes."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    with (HERE / "data" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokens = tokenizer.encode_batch([row["text"] for row in rows])
    return [item.ids for item in tokens], torch.tensor([int(row["label"]) for row in rows])


def padded(tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Give token numbers, filled up with zeros, and their mask."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True)
    return ids, (ids > 0).long()


def fit(net: nn.Module, epochs: int, batch: int = 32) -> None:
    """Train in place: AdamW, one learning-rate cycle, bfloat16; the new layer learns a hundred times as fast."""
    tokens, labels = encoded("train")
    draw = torch.Generator().manual_seed(0)
    parts = [{"params": net.encoder.parameters(), "lr": 5e-5}, {"params": net.head.parameters(), "lr": 5e-3}]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.01)
    steps = -(-len(labels) // batch)
    rates = [part["lr"] for part in parts]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, epochs=epochs, steps_per_epoch=steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=draw).split(batch):
            inputs = padded([tokens[place] for place in chosen])
            with torch.autocast("cpu", torch.bfloat16):
                scores = net(*inputs)
            loss = functional.cross_entropy(scores.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def accuracy(net: nn.Module, part: str = "test") -> float:
    """Give the share of a part's sentences that the network understands."""
    tokens, labels = encoded(part)
    net.eval()
    places = torch.arange(len(labels)).split(50)
    guesses = torch.cat([net(*padded([tokens[place] for place in chosen])).argmax(1) for chosen in places])
    return (guesses == labels).double().mean().item()


def main() -> None:
    """Fetch, train, print the test accuracy, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    output = HERE / "data"
    output.mkdir(exist_ok=True)
    if not (output / "train.csv").exists():
        divide(sentences(), output)
    from net import build

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = build()
    net.encoder.load_state_dict(load_file(MINILM / "minilm.safetensors"))
    fit(net, options.epochs)
    print(f"test accuracy {accuracy(net):.4f}")
    save_file(net.state_dict(), output / "movies.safetensors")


if __name__ == "__main__":
    main()
